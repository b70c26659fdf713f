// The parts of the verbs face that need no device: GIDs as text, statuses, and what a failed load tells.
import { describe, expect, it } from 'vitest';
import {
  formatGidTable,
  GidType,
  gidToIpv4,
  ibverbsStatus,
  isCanonicalGid,
  normalizeGid,
  randomPsn,
  VERBS_ERROR_CODES,
  WcStatus,
  wcStatusExplanation,
  wcStatusName,
} from '#lib/verbs/index.js';
import { possibleSolutions } from '../../dist/verbs/load-addon.js';

describe('GIDs', () => {
  it.each([
    ['fe80::1', 'fe80:0000:0000:0000:0000:0000:0000:0001'],
    ['FE80:0000:0000:0000:5054:00FF:FE12:3456', 'fe80:0000:0000:0000:5054:00ff:fe12:3456'],
    ['10.78.0.1', '0000:0000:0000:0000:0000:ffff:0a4e:0001'],
    ['::ffff:10.78.0.1', '0000:0000:0000:0000:0000:ffff:0a4e:0001'],
    ['::', '0000:0000:0000:0000:0000:0000:0000:0000'],
    ['1:2:3:4:5:6:7:8', '0001:0002:0003:0004:0005:0006:0007:0008'],
    ['2001:db8::8:800:200c:417a', '2001:0db8:0000:0000:0008:0800:200c:417a'],
    ['2001:db8::', '2001:0db8:0000:0000:0000:0000:0000:0000'],
  ])('%s is %s', (text, canonical) => {
    expect(normalizeGid(text)).toBe(canonical);
    expect(isCanonicalGid(canonical)).toBe(true);
    expect(normalizeGid(canonical)).toBe(canonical);
  });

  it('stand for IPv4 addresses only in the mapped range', () => {
    expect(gidToIpv4('0000:0000:0000:0000:0000:ffff:0a4e:00ff')).toBe('10.78.0.255');
    expect(gidToIpv4('fe80::1')).toBe(undefined);
    expect(gidToIpv4('::1:0:ffff:a4e:1')).toBe(undefined);
  });

  it('are printed as a table that can be read', () => {
    const gid = normalizeGid('10.78.0.2');
    expect(formatGidTable([{ index: 1, gid, type: GidType.ROCE_V2, netdev: 'v1' }])).toBe(
      `1  ${gid}  RoCE v2  v1  10.78.0.2`,
    );
  });
});

describe('statuses', () => {
  it('all have their name and an explanation of their own', () => {
    const explanations = new Set<string>();
    for (const [name, status] of Object.entries(WcStatus)) {
      expect(wcStatusName(status)).toBe(name);
      const explanation = wcStatusExplanation(status);
      expect(explanation.length, name).toBeGreaterThan(20);
      explanations.add(explanation);
    }
    expect(explanations.size).toBe(Object.keys(WcStatus).length);
    expect(wcStatusName(1000)).toBe('POST_REFUSED');
    expect(wcStatusName(1001)).toBe('FENCED');
    expect(wcStatusName(99)).toBe('UNKNOWN_99');
  });
});

describe('the addon', () => {
  it('says why the devices of the kernel cannot be used, if they cannot', () => {
    const status = ibverbsStatus();
    if (status.available) expect(status).toEqual({ available: true });
    else {
      expect(Object.keys(VERBS_ERROR_CODES)).toContain(status.code);
      expect(status.message?.length).toBeGreaterThan(20);
    }
  });

  it.each([
    ['darwin', 'arm64', '', 'x', /Linux/],
    ['linux', 'x64', 'glibc', "version `GLIBC_2.38' not found", /older than the prebuilt/],
    ['linux', 'x64', 'musl', 'No native build was found', /apk add/],
    ['linux', 'arm64', 'glibc', 'wrong ELF class', /another architecture/],
    ['linux', 'riscv64', 'glibc', 'No native build was found', /no prebuilt addon for linux-riscv64/],
  ])('that does not load on %s-%s %s (%s) tells what to do', (platform, arch, libc, reason, expected) => {
    expect(possibleSolutions(platform, arch, libc, reason)).toMatch(expected);
    expect(possibleSolutions(platform, arch, libc, reason)).toMatch(/^Possible solutions:|Possible solutions:/m);
  });

  it('draws packet sequence numbers of 24 bits that differ', () => {
    const drawn = Array.from({ length: 64 }, randomPsn);
    expect(new Set(drawn).size).toBeGreaterThan(60);
    expect(drawn.every((psn) => Number.isInteger(psn) && psn >= 0 && psn < 2 ** 24)).toBe(true);
  });
});

// What bench/permissions.mjs found, as a figure (docs/figures, by Vega-Lite) and as the tables of docs/PERMISSIONS.md,
// which stand between marks in that file. A test asks that the tables are those of the data.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { formatUs } from '#lib/cli/demo/figures.js';
import { MECHANISMS, sizeText } from './permission-mechanisms.mjs';

/** @typedef {import('../permissions.mjs').Results} Results */

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
export const PAGE = join(ROOT, 'docs/PERMISSIONS.md');

/** @param {string} name */
const titleOf = (name) => MECHANISMS.find((mechanism) => mechanism.name === name)?.title ?? name;

/** @param {Record<string, number>} statuses */
function statusText(statuses) {
  const entries = Object.entries(statuses).sort(([, a], [, b]) => b - a);
  return entries.map(([name, count]) => (entries.length === 1 ? name : `${name} (${count})`)).join(', ');
}

/** @param {Results} results */
export function tables(results) {
  const summary = results.latency.filter(({ sizeBytes }) => sizeBytes === null || sizeBytes === 1_048_576);
  const lines = [
    '| mechanism | revoke: median, p99 | grant: median, p99 | a writer without the right sees | in the race test |',
    '|---|---|---|---|---|',
  ];
  for (const { name } of MECHANISMS) {
    const latency = summary.find(({ mechanism }) => mechanism === name);
    const race = results.race.find(({ mechanism }) => mechanism === name);
    if (latency === undefined && race === undefined) continue;
    const pair = (/** @type {{ p50: number, p99: number } | undefined} */ us) =>
      us === undefined ? '' : `${formatUs(us.p50)}, ${formatUs(us.p99)}`;
    const size = latency?.sizeBytes ? ` (${sizeText(latency.sizeBytes)})` : '';
    const late =
      race === undefined
        ? 'not run'
        : race.late > 0
          ? `**late bytes in ${race.late} of ${race.trials}**, up to ${formatUs(race.latestUs)} after the call`
          : `0 of ${race.trials} late`;
    const statuses = latency === undefined ? '' : statusText(latency.statuses);
    lines.push(
      `| ${titleOf(name)}${size} | ${pair(latency?.revokeUs)} | ${pair(latency?.grantUs)} | ${statuses} | ${late} |`,
    );
  }
  const sized = results.latency.filter(({ sizeBytes }) => sizeBytes !== null);
  if (sized.length > 0) {
    const names = [...new Set(sized.map(({ mechanism }) => mechanism))];
    const sizes = [...new Set(sized.map(({ sizeBytes }) => sizeBytes ?? 0))].sort((a, b) => a - b);
    lines.push('', `| by size, median: revoke / grant | ${sizes.map(sizeText).join(' | ')} |`);
    lines.push(`|---|${sizes.map(() => '---').join('|')}|`);
    for (const name of names) {
      const cells = sizes.map((size) => {
        const one = sized.find(({ mechanism, sizeBytes }) => mechanism === name && sizeBytes === size);
        return one === undefined ? '' : `${formatUs(one.revokeUs.p50)} / ${formatUs(one.grantUs.p50)}`;
      });
      lines.push(`| ${titleOf(name)} | ${cells.join(' | ')} |`);
    }
  }
  lines.push('', 'What writers saw in the race test, where some are stopped or killed:', '');
  for (const { mechanism, statuses } of results.race) lines.push(`* ${titleOf(mechanism)}: ${statusText(statuses)}`);
  if (results.leftOut.length > 0) {
    lines.push('', 'Left out:', '');
    for (const { mechanism, sizeBytes, why } of results.leftOut) {
      const size = sizeBytes === null ? '' : `, ${sizeText(sizeBytes)}`;
      lines.push(`* ${mechanism === 'all' ? 'everything' : titleOf(mechanism)}${size}: ${why}`);
    }
  }
  lines.push('', ...results.machines.map((machine) => `Measured on device ${results.device}: ${machine}.`));
  return lines.join('\n');
}

/**
 * The text between the marks of `name`, with the marks.
 * @param {string} page
 * @param {string} name
 */
export function section(page, name) {
  const [begin, end] = [`<!-- measured: ${name} -->`, `<!-- end: ${name} -->`];
  const from = page.indexOf(begin);
  const to = page.indexOf(end);
  if (from < 0 || to < from) throw new Error(`docs/PERMISSIONS.md has no marks "${begin}" and "${end}"`);
  return {
    before: page.slice(0, from + begin.length),
    inside: page.slice(from + begin.length, to),
    after: page.slice(to),
  };
}

/** Of lines: whole, and dashed. */
const DASHES = [
  [1, 0],
  [6, 4],
];

/**
 * The plot: revoking by size of the registered memory, on logarithmic scales, with a thin line up to the 99th
 * percentile; dashed where the race test saw late bytes.
 * @param {Results} results
 */
function figure(results) {
  const sizes = results.latency.map(({ sizeBytes }) => sizeBytes ?? 0).filter((size) => size > 0);
  const [least, most] = [Math.min(...sizes), Math.max(...sizes)];
  const isLate = (/** @type {string} */ name) => results.race.some((one) => one.mechanism === name && one.late > 0);
  const points = results.latency.flatMap(({ mechanism, sizeBytes, revokeUs, grantUs }) =>
    (sizeBytes === null ? [least, most] : [sizeBytes]).flatMap((size) =>
      [
        { what: 'revoke', us: revokeUs },
        { what: 'grant', us: grantUs },
      ].map(({ what, us }) => ({
        mechanism: titleOf(mechanism),
        late: isLate(mechanism),
        what,
        mib: size / 1_048_576,
        p50: us.p50,
        p99: us.p99,
      })),
    ),
  );
  const x = {
    field: 'mib',
    type: 'quantitative',
    scale: { type: 'log', base: 2, nice: false },
    title: 'registered memory',
    axis: {
      labelFlush: false,
      labelOverlap: false,
      values: [...new Set(sizes)].map((size) => size / 1_048_576),
      labelExpr: "datum.value < 1 ? datum.value * 1024 + ' KiB' : datum.value < 1024 ? datum.value + ' MiB' : '1 GiB'",
    },
  };
  const color = {
    field: 'mechanism',
    type: 'nominal',
    title: null,
    sort: MECHANISMS.map(({ title }) => title),
    legend: { orient: 'bottom', columns: 3, labelLimit: 320 },
  };
  const y = { field: 'p50', type: 'quantitative', scale: { type: 'log' }, title: 'microseconds (median, line to p99)' };
  return {
    $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
    title: {
      text: `Giving and taking write permission on ${results.provider === 'shm' ? 'shared memory' : 'SoftRoCE, emulated'}`,
      subtitle: 'Dashed: the race test saw bytes that changed after the revoking call had returned.',
    },
    background: 'white',
    spacing: 48,
    data: { values: points },
    facet: { column: { field: 'what', type: 'nominal', title: null, sort: ['revoke', 'grant'] } },
    spec: {
      width: 380,
      height: 320,
      layer: [
        {
          mark: { type: 'line', point: true },
          encoding: {
            x,
            y,
            color,
            strokeDash: {
              field: 'late',
              type: 'nominal',
              scale: { domain: [false, true], range: DASHES },
              legend: null,
            },
          },
        },
        { mark: { type: 'rule', opacity: 0.5 }, encoding: { x, y, y2: { field: 'p99' }, color } },
      ],
    },
  };
}

/**
 * Writes data, plot and tables.
 * @param {string} name
 * @param {Results} results
 */
export async function saveFigures(name, results) {
  if (!/^[a-z0-9-]+$/.test(name)) throw new Error(`--save takes a name of small letters and digits, not "${name}"`);
  const page = readFileSync(PAGE, 'utf8');
  const { before, after } = section(page, name);
  const [vega, vegaLite] = await Promise.all([import('vega'), import('vega-lite')]);
  const { spec } = vegaLite.compile(/** @type {any} */ (figure(results)));
  const svg = await new vega.View(vega.parse(spec), { renderer: 'none' }).toSVG();
  const folder = join(ROOT, 'docs/figures');
  mkdirSync(folder, { recursive: true });
  const [data, plot] = ['json', 'svg'].map((ending) => join(folder, `permissions-${name}.${ending}`));
  writeFileSync(data ?? '', `${JSON.stringify(results, null, 2)}\n`);
  writeFileSync(plot ?? '', `${svg}\n`);
  writeFileSync(PAGE, `${before}\n${tables(results)}\n${after}`);
  return [data, plot, PAGE];
}

// What status() says of each member and of each peer: put together from the configuration, the plane's view of its
// peers and the links.
import { type Configuration, voterWithId } from '../consensus/configuration.js';
import type { ReplicationPlane } from '../consensus/replication-plane.js';
import type { LinkManager } from './link-manager.js';
import type { MemberStatus, PeerStatus } from './replica-options.js';

/** What a replica has of it; at first neither a log nor links. */
export interface StatusView {
  readonly id: number;
  readonly plane: ReplicationPlane | undefined;
  readonly links: LinkManager | undefined;
  trusts(peer: number): boolean;
}

export function memberStatuses({ id: own, plane }: Pick<StatusView, 'id' | 'plane'>, configuration: Configuration) {
  return configuration.members.map(({ id, role, bootId, host, port, priority, returning, replaces }): MemberStatus => {
    const leads = plane?.role === 'leader';
    const isSelf = id === own;
    const phase = isSelf && leads ? 'active' : (plane?.peerPhase(id) ?? 'none');
    const acknowledgedLsn = !leads ? 0 : isSelf ? plane.tailLsn : plane.peerAckedLsn(id);
    return { id, role, bootId, host, port, priority, returning, replaces, phase, acknowledgedLsn };
  });
}

/** Of the replicas that are dialed, which `ids` are. */
export function peerStatuses(
  { id: own, plane, links, trusts }: StatusView,
  ids: readonly number[],
  configuration: Configuration | undefined,
): PeerStatus[] {
  return ids
    .filter((id) => id !== own)
    .map((id) => ({
      id,
      linked: links?.linked(id) ?? false,
      trusted: trusts(id),
      voter:
        configuration !== undefined &&
        links !== undefined &&
        voterWithId(configuration, id)?.bootId === links.bootId(id),
      phase: plane?.peerPhase(id) ?? 'none',
    }));
}

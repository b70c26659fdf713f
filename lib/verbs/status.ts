// Statuses of work completions: numbers, names, and what to do about each.
import { addon } from './load-addon.js';
import { FENCED, POST_REFUSED } from './native.js';

/** ibv_wc_status, see ibv_poll_cq(3); names without the IBV_WC_ prefix. */
export const WcStatus = {
  /** Done. */
  SUCCESS: 0,
  /** A message was longer than the receive, or than allowed. */
  LOC_LEN_ERR: 1,
  /** The queue pair could not carry out the request. */
  LOC_QP_OP_ERR: 2,
  /** Not used: RD transport. */
  LOC_EEC_OP_ERR: 3,
  /** The lkey does not cover the local memory. */
  LOC_PROT_ERR: 4,
  /** Not carried out: the queue pair was in ERR. */
  WR_FLUSH_ERR: 5,
  /** A memory window could not be bound. */
  MW_BIND_ERR: 6,
  /** The answer of the peer makes no sense. */
  BAD_RESP_ERR: 7,
  /** A WRITE with immediate data had no right to the local memory. */
  LOC_ACCESS_ERR: 8,
  /** The peer refused the request: not allowed by its queue pair's access flags, or too long. */
  REM_INV_REQ_ERR: 9,
  /** The rkey gives no right to the peer's memory. */
  REM_ACCESS_ERR: 10,
  /** The peer could not carry out the request. */
  REM_OP_ERR: 11,
  /** The peer did not answer. */
  RETRY_EXC_ERR: 12,
  /** The peer had no receive posted. */
  RNR_RETRY_EXC_ERR: 13,
  /** Not used: RD transport. */
  LOC_RDD_VIOL_ERR: 14,
  /** Not used: RD transport. */
  REM_INV_RD_REQ_ERR: 15,
  /** The peer aborted the operation. */
  REM_ABORT_ERR: 16,
  /** Not used: RD transport. */
  INV_EECN_ERR: 17,
  /** Not used: RD transport. */
  INV_EEC_STATE_ERR: 18,
  /** The device failed. */
  FATAL_ERR: 19,
  /** The answer took too long. */
  RESP_TIMEOUT_ERR: 20,
  /** Anything else. */
  GENERAL_ERR: 21,
  /** Tag matching failed. */
  TM_ERR: 22,
  /** Tag matching: a rendezvous was not completed. */
  TM_RNDV_INCOMPLETE: 23,
} as const;
/** One of the values of the constant {@link WcStatus}. */
export type WcStatus = (typeof WcStatus)[keyof typeof WcStatus];

/**
 * "SUCCESS", "REM_ACCESS_ERR", ...; "POST_REFUSED" and "FENCED" for the statuses that PostList adds; "UNKNOWN_<n>" for
 * a number that the verbs API does not define.
 *
 * @throws RangeError QUORATE_OUT_OF_RANGE if `status` is not an integer from 0 to 2^31-1
 */
export function wcStatusName(status: number): string {
  if (status === POST_REFUSED) return 'POST_REFUSED';
  if (status === FENCED) return 'FENCED';
  return addon.wcStatusName(status);
}

/**
 * One sentence: the usual causes of a status and what to do.
 *
 * @throws RangeError QUORATE_OUT_OF_RANGE if `status` is not an integer from 0 to 2^31-1
 */
export function wcStatusExplanation(status: number): string {
  if (status === POST_REFUSED) {
    return (
      'The request never reached the device; vendorErr holds the errno: EINVAL (malformed request, or the queue ' +
      'pair is not in a state that takes it), ENOMEM (queue full: poll completions first), EBADF (slot unbound or ' +
      'object closed), EFAULT (address outside the bound memories), ECANCELED (behind a copy that was refused).'
    );
  }
  if (status === FENCED) {
    return (
      'The fence holds another epoch than the request: this replica was deposed. The request and everything behind ' +
      'it in the same submit were not executed; stop acting as leader.'
    );
  }
  return addon.wcStatusExplanation(status);
}

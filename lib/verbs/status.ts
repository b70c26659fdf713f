// Statuses of work completions: numbers, names, and what to do about each.
import { addon } from './load-addon.js';
import { FENCED, POST_REFUSED } from './native.js';

/** ibv_wc_status, see ibv_poll_cq(3); names without the IBV_WC_ prefix. */
export const WcStatus = {
  SUCCESS: 0,
  LOC_LEN_ERR: 1,
  LOC_QP_OP_ERR: 2,
  LOC_EEC_OP_ERR: 3,
  LOC_PROT_ERR: 4,
  WR_FLUSH_ERR: 5,
  MW_BIND_ERR: 6,
  BAD_RESP_ERR: 7,
  LOC_ACCESS_ERR: 8,
  REM_INV_REQ_ERR: 9,
  REM_ACCESS_ERR: 10,
  REM_OP_ERR: 11,
  RETRY_EXC_ERR: 12,
  RNR_RETRY_EXC_ERR: 13,
  LOC_RDD_VIOL_ERR: 14,
  REM_INV_RD_REQ_ERR: 15,
  REM_ABORT_ERR: 16,
  INV_EECN_ERR: 17,
  INV_EEC_STATE_ERR: 18,
  FATAL_ERR: 19,
  RESP_TIMEOUT_ERR: 20,
  GENERAL_ERR: 21,
  TM_ERR: 22,
  TM_RNDV_INCOMPLETE: 23,
} as const;
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

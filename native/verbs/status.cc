// Completion statuses as people read them: the name, and one sentence with the usual causes and what to do. A table
// in the order of ibv_wc_status, so that a status a device reports is looked up and never guessed.
#include <cstddef>
#include <string>

#include "verbs/verbs.h"

namespace quorate {
namespace {

struct StatusText {
  const char* name;
  const char* explanation;
};

constexpr StatusText kStatuses[] = {
    {"SUCCESS", "The request completed."},
    {"LOC_LEN_ERR",
     "The local buffers do not fit the message (a receive buffer smaller than what was sent, or a message larger than "
     "the port allows): post larger receives or send less."},
    {"LOC_QP_OP_ERR",
     "The queue pair could not carry out the request (an internal inconsistency, an opcode its type does not have, or "
     "an inline request that was too large; on rxe also a wrong lkey or a receive buffer that is too small): check the "
     "request, its lkey and the capabilities of the queue pair."},
    {"LOC_EEC_OP_ERR",
     "An end-to-end context failed internally; only reliable datagrams, which nobody offers, use it."},
    {"LOC_PROT_ERR",
     "The local buffer of the request is not covered by its lkey (wrong key, outside the memory region, another "
     "protection domain, or a region that was deregistered): check localAddress, length and lkey."},
    {"WR_FLUSH_ERR",
     "The queue pair was in the error state, so the request was not carried out (or its outcome is not known): look "
     "for "
     "the first other status on this queue pair, then replace the queue pair."},
    {"MW_BIND_ERR",
     "A memory window could not be bound (the region lacks the right to bind, or does not cover the window): register "
     "the region with the bind right and check the bounds."},
    {"BAD_RESP_ERR",
     "The responder answered with an opcode that does not fit the request: the packets are damaged or the devices "
     "disagree; replace the queue pair and check the path."},
    {"LOC_ACCESS_ERR",
     "A protection error on a local buffer while a remote write with immediate data was received: check the local "
     "region's rights and bounds."},
    {"REM_INV_REQ_ERR",
     "The responder rejected the request as invalid (it does not allow this kind of operation on the queue pair, the "
     "message is too long for the posted receive, an atomic is not aligned to 8 bytes, or too many reads are "
     "outstanding): check the responder's queue pair access flags, and the request."},
    {"REM_ACCESS_ERR",
     "The responder's memory protection refused the request (wrong rkey, outside the region, a right that was not "
     "given or was revoked): ask for a new grant. It does not prove a revocation, since a dying responder causes it "
     "too."},
    {"REM_OP_ERR",
     "The responder failed to complete the request for a reason of its own (its queue pair had a local error; on rxe "
     "also "
     "a message longer than the posted receive): look at the responder, then connect again."},
    {"RETRY_EXC_ERR",
     "The responder did not acknowledge within timeout times retries: its process is gone, its queue pair is not "
     "connected to this one or is in the error state, the packet sequence numbers differ, or the network does not "
     "carry UDP port 4791; check the peer and the path, then connect again with a new queue pair."},
    {"RNR_RETRY_EXC_ERR",
     "The responder had no receive posted and the retries ran out: post receives before the peer sends, or raise "
     "rnrRetry (7 retries for ever)."},
    {"LOC_RDD_VIOL_ERR",
     "A reliable datagram domain did not match; only reliable datagrams, which nobody offers, use it."},
    {"REM_INV_RD_REQ_ERR",
     "The responder rejected a reliable datagram message; only reliable datagrams, which nobody offers, use it."},
    {"REM_ABORT_ERR",
     "The responder aborted the operation (for a shared receive queue or a reliable datagram): look at the responder, "
     "then connect again."},
    {"INV_EECN_ERR",
     "An end-to-end context number was not valid; only reliable datagrams, which nobody offers, use it."},
    {"INV_EEC_STATE_ERR",
     "An end-to-end context was in the wrong state; only reliable datagrams, which nobody offers, use it."},
    {"FATAL_ERR",
     "The device failed: every queue pair on it is lost; look at the kernel's log, and reset or replace the device."},
    {"RESP_TIMEOUT_ERR",
     "The response did not arrive in time although the request was acknowledged: check the path, then connect again "
     "with a new queue pair."},
    {"GENERAL_ERR",
     "The device reports an error without a name of its own (an internal one): vendorErr says more; replace the queue "
     "pair."},
    {"TM_ERR", "Tag matching failed; only queues with tag matching, which quorate does not use, report it."},
    {"TM_RNDV_INCOMPLETE",
     "A rendezvous of tag matching is left to software; only queues with tag matching, which quorate does not use, "
     "report it."},
};
constexpr int kStatusCount = static_cast<int>(sizeof(kStatuses) / sizeof(kStatuses[0]));
static_assert(kStatusCount == static_cast<int>(WcStatus::TmRndvIncomplete) + 1, "one text for every WcStatus");

}  // namespace

std::string wcStatusName(int status) {
  if (status < 0 || status >= kStatusCount) return "UNKNOWN_" + std::to_string(status);
  return kStatuses[status].name;
}

std::string wcStatusExplanation(int status) {
  if (status < 0 || status >= kStatusCount) {
    return "The device reported completion status " + std::to_string(status) +
           ", which ibv_wc_status does not name: treat the request as failed and replace the queue pair.";
  }
  return kStatuses[status].explanation;
}

}  // namespace quorate

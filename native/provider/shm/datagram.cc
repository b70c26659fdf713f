// UD sends: finding the queue pair that a datagram is for, and the claim under which it is delivered.
//
// Anybody may send to a UD queue pair, so its word alone does not tell whose operation is under way, which a revocation
// (and the next sender) must know if that process dies in the middle. A sender therefore claims the slot first, with
// the identity of its process, and then takes the word as any requester does. Who finds the claim of a process that has
// exited takes it over. Everything that does not work out drops the datagram: that is what UD promises.
#include <cassert>
#include <cstring>

#include "provider/shm/address_handle.h"
#include "provider/shm/multicast.h"
#include "provider/shm/queue_pair.h"
#include "verbs/grh.h"

namespace quorate::shm {
namespace {

constexpr int kClaimSpins = 4096;  // pauses of the CPU, together about 100 us

// pid:22 | start time:42, so that a number that is used again is told apart.
constexpr unsigned kStartTimeBits = 42;

ProcessIdentity identityOf(uint64_t claim, const ControlHeader& header) {
  return {static_cast<pid_t>(claim >> kStartTimeBits), claim & ((uint64_t{1} << kStartTimeBits) - 1),
          header.pidNamespace.load(std::memory_order_relaxed)};
}

uint64_t claimOf(const ProcessIdentity& self, const ControlHeader& header) {
  // Seen from another namespace this process has another number: then it stays unnamed, and counts as running.
  if (self.pidNamespace == 0 || self.pidNamespace != header.pidNamespace.load(std::memory_order_relaxed)) return 1;
  return static_cast<uint64_t>(self.pid) << kStartTimeBits | (self.startTime & ((uint64_t{1} << kStartTimeBits) - 1));
}

}  // namespace

bool senderHasExited(const ControlHeader& header, const QueuePairSlot& slot) {
  const uint64_t claim = slot.sender.load(std::memory_order_seq_cst);
  return claim != 0 && ProcessExit(identityOf(claim, header)).hasExited(0);
}

bool ShmQueuePair::claimDatagramSlot() {
  const ControlHeader& header = peer_->control()->header;
  datagramClaim_ = claimOf(context_.self(), header);
  uint64_t holder = 0;
  for (int i = 0; i < kClaimSpins; i++) {
    holder = 0;
    if (remote_->sender.compare_exchange_strong(holder, datagramClaim_, std::memory_order_seq_cst)) return true;
    pauseCpu();
  }
  if (!ProcessExit(identityOf(holder, header)).hasExited(0)) return false;
  if (!remote_->sender.compare_exchange_strong(holder, datagramClaim_, std::memory_order_seq_cst)) return false;
  // Its operation ended with it.
  uint64_t w = remote_->word.load(std::memory_order_seq_cst);
  while (word::busy(w) && !remote_->word.compare_exchange_weak(w, word::idle(w), std::memory_order_seq_cst)) {
  }
  return true;
}

void ShmQueuePair::releaseDatagramSlot() {
  uint64_t own = datagramClaim_;
  remote_->sender.compare_exchange_strong(own, 0, std::memory_order_seq_cst);
}

// Makes the destination, a queue pair of peer_, what a connection is to the other types, for this one message.
bool ShmQueuePair::addressDatagram(const SendWorkRequest& request, uint32_t number) {
  remote_ = &peer_->control()->queuePairs[number & (kMaxQueuePairs - 1)];
  const uint32_t qkey = (request.remoteQkey & kOwnQkey) != 0 ? attributes_.qkey : request.remoteQkey;
  if (remote_->number.load(std::memory_order_acquire) != number ||
      remote_->type.load(std::memory_order_acquire) != static_cast<uint32_t>(QpType::Ud) ||
      remote_->qkey.load(std::memory_order_acquire) != qkey) {
    return false;
  }
  return adoptRemote();
}

void ShmQueuePair::sendDatagram(const SendWorkRequest& request, const uint8_t* local) {
  if (request.length > kMaxDatagramBytes) return;  // longer than the port's MTU: dropped without an error (C10-93.1.1)
  Grh grh;
  const AddressVector& av = request.addressHandle->attributes();
  grh.trafficClass = av.trafficClass;
  grh.flowLabel = av.flowLabel;
  grh.payloadLength = static_cast<uint16_t>(request.length);
  grh.hopLimit = static_cast<uint8_t>(av.hopLimit);
  grh.sgid = makeGid(context_.hcaId());
  grh.dgid = av.dgid;
  writeGrh(grh, datagramHeader_);
  auto& handle = *static_cast<ShmAddressHandle*>(request.addressHandle);
  if (handle.hcaId() == 0) {
    if (request.remoteQpNum == kMulticastQueuePair) sendMulticast(request, local);
    return;
  }
  std::shared_ptr<PeerHca> peer = handle.peer();
  if (peer == nullptr) return;
  peer_ = std::move(peer);
  deliverDatagram(request, request.remoteQpNum, local);
}

void ShmQueuePair::deliverDatagram(const SendWorkRequest& request, uint32_t number, const uint8_t* local) {
  if (!addressDatagram(request, number) || !claimDatagramSlot()) return;
  runDatagram(request, local);
  releaseDatagramSlot();
}

}  // namespace quorate::shm

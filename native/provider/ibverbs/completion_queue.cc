// See completion_queue.h.
#include "provider/ibverbs/completion_queue.h"

#include <endian.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <string>

#include "provider/ibverbs/errors.h"

namespace quorate::ibverbs {
namespace {

constexpr int kPollChunk = 16;  // completions taken from the device at a time

constexpr uint64_t cookiePrefix(size_t slot, uint16_t generation) {
  return static_cast<uint64_t>(generation) << 48 | static_cast<uint64_t>(slot) << 32;
}
constexpr size_t cookieSlot(uint64_t cookie) {
  return cookie >> 32 & 0xffff;
}
constexpr uint16_t cookieGeneration(uint64_t cookie) {
  return static_cast<uint16_t>(cookie >> 48);
}
constexpr uint32_t cookiePosition(uint64_t cookie) {
  return static_cast<uint32_t>(cookie);
}
static_assert(kMaxWorkQueuesPerCompletionQueue <= kSharedSlotBit, "a slot number has 16 bits, one of them the mark");

// In wcFlags of completions that were not handed out yet: of which shared queue they are. Their entries are kept back
// for that queue, so no credit is returned for them.
constexpr uint32_t kOfSharedQueue = 1u << 31;
constexpr unsigned kSharedNumberShift = 16;
constexpr uint32_t sharedMark(uint32_t number) {
  return kOfSharedQueue | number << kSharedNumberShift;
}
constexpr uint32_t kDeviceFlags = (1u << kSharedNumberShift) - 1;
static_assert(IBV_WC_TM_DATA_VALID <= kDeviceFlags && sharedMark(kMaxSharedQueueNumber) == ~kDeviceFlags);

}  // namespace

IbvCompletionQueue::IbvCompletionQueue(std::shared_ptr<IbvContext> context,
                                       std::shared_ptr<IbvCompletionChannel> channel)
    : context_(std::move(context)), channel_(std::move(channel)) {}

std::shared_ptr<IbvCompletionQueue> IbvCompletionQueue::create(std::shared_ptr<IbvContext> context, int depth,
                                                               std::shared_ptr<IbvCompletionChannel> channel) {
  std::shared_lock<std::shared_mutex> channelLock;
  if (channel != nullptr) channelLock = channel->lifecycle().useAsParent();
  std::shared_ptr<IbvCompletionQueue> queue(new IbvCompletionQueue(context, channel));
  errno = 0;
  // Events of this queue carry its address; getEvent() turns it back into the object.
  queue->handle_ = context->lib().createCq(context->handle(), depth, queue.get(),
                                           channel != nullptr ? channel->handle() : nullptr, 0);
  if (queue->handle_ == nullptr) {
    throwPinningError("ibv_create_cq", errno,
                      "Creating a completion queue of depth " + std::to_string(depth) + " on " + context->device().name,
                      static_cast<uint64_t>(depth) * 64,
                      "The device allows " + std::to_string(context->limits().maxCq) + " of them.");
  }
  queue->depth_ = queue->handle_->cqe;
  assert(queue->depth_ >= depth);
  queue->credits_.store(static_cast<uint32_t>(queue->depth_), std::memory_order_relaxed);
  if (channel != nullptr) channel->lifecycle().addChild(queue);
  return queue;
}

IbvCompletionQueue::~IbvCompletionQueue() {
  closeInDestructor(this, {context_, channel_});
}

void IbvCompletionQueue::close() {
  lifecycle_.close([this] {
    if (handle_ == nullptr) return;  // create() failed
    std::lock_guard<AdaptiveMutex> lock(pollMutex_);
    const int errnum = context_->lib().destroyCq(handle_);
    if (errnum != 0) {
      throwSystemError("ibv_destroy_cq", errnum, "Closing a completion queue of " + context_->device().name, "");
    }
    usable_ = false;
  });
}

void IbvCompletionQueue::attach(std::shared_ptr<WorkQueue> queue) {
  std::lock_guard<AdaptiveMutex> lock(pollMutex_);
  auto slot = std::find_if(slots_.begin(), slots_.end(), [](const Slot& one) { return one.queue == nullptr; });
  if (slot == slots_.end()) {
    if (slots_.size() >= kMaxWorkQueuesPerCompletionQueue) {
      throw VerbsError("QUORATE_LIMIT", "A CompletionQueue serves at most " +
                                            std::to_string(kMaxWorkQueuesPerCompletionQueue) +
                                            " send and receive queues; make another one.");
    }
    slot = slots_.emplace(slots_.end());
  }
  queue->setCookiePrefix(cookiePrefix(static_cast<size_t>(slot - slots_.begin()), slot->generation));
  slot->queue = std::move(queue);
}

IbvCompletionQueue::Slot& IbvCompletionQueue::giveUp(const std::shared_ptr<WorkQueue>& queue) {
  const auto slot = std::find_if(slots_.begin(), slots_.end(), [&](const Slot& one) { return one.queue == queue; });
  assert(slot != slots_.end());
  if (usable_) takeInLocked();
  returnCredits(queue->retireAll());
  slot->generation++;
  return *slot;
}

void IbvCompletionQueue::takeIn() {
  std::lock_guard<AdaptiveMutex> lock(pollMutex_);
  if (usable_) takeInLocked();
}

void IbvCompletionQueue::takeInLocked() {
  {
    // Room for all: every completion in the device or here holds one of depth_ credits.
    takenIn_.erase(takenIn_.begin(), takenIn_.begin() + static_cast<ptrdiff_t>(takenInNext_));
    takenInNext_ = 0;
    WorkCompletion chunk[kPollChunk];
    int count;
    while ((count = pollDevice(chunk, kPollChunk)) > 0) takenIn_.insert(takenIn_.end(), chunk, chunk + count);
    assert(takenIn_.size() <= static_cast<size_t>(depth_));
  }
}

void IbvCompletionQueue::attachShared(const std::shared_ptr<SharedWorkQueue>& queue) {
  std::lock_guard<AdaptiveMutex> lock(pollMutex_);
  Shared& shared = shared_[queue->number()];
  if (shared.users == 0) {
    const uint32_t taken = takeCredits(queue->capacity() - shared.late);  // it holds the rest already
    if (taken < queue->capacity() - shared.late) {
      returnCredits(taken);
      if (shared.queue == nullptr) shared_.erase(queue->number());
      throw VerbsError("QUORATE_LIMIT", "A completion queue of depth " + std::to_string(depth_) + " has room for " +
                                            std::to_string(taken) +
                                            " more completions, but the shared receive queue can yield " +
                                            std::to_string(queue->capacity()) + "; make it deeper.");
    }
    shared.queue = queue;
    shared.late = 0;
  }
  shared.users++;
}

void IbvCompletionQueue::detachShared(const std::shared_ptr<SharedWorkQueue>& queue) {
  std::lock_guard<AdaptiveMutex> lock(pollMutex_);
  Shared& shared = shared_.at(queue->number());
  assert(shared.users > 0);
  if (--shared.users > 0) return;
  if (usable_) takeInLocked();
  shared.late = static_cast<uint32_t>(std::count_if(
      takenIn_.begin() + static_cast<ptrdiff_t>(takenInNext_), takenIn_.end(),
      [&](const WorkCompletion& one) { return (one.wcFlags & ~kDeviceFlags) == sharedMark(queue->number()); }));
  assert(shared.late <= queue->capacity());
  returnCredits(queue->capacity() - shared.late);
}

void IbvCompletionQueue::abandon(const std::shared_ptr<WorkQueue>& queue) {
  std::lock_guard<AdaptiveMutex> lock(pollMutex_);
  const Slot& slot = giveUp(queue);
  queue->setCookiePrefix(cookiePrefix(static_cast<size_t>(&slot - slots_.data()), slot.generation));
}

void IbvCompletionQueue::detach(const std::shared_ptr<WorkQueue>& queue) {
  std::lock_guard<AdaptiveMutex> lock(pollMutex_);
  giveUp(queue).queue.reset();
}

int IbvCompletionQueue::poll(WorkCompletion* completions, int max) {
  if (max <= 0) return 0;
  std::lock_guard<AdaptiveMutex> lock(pollMutex_);
  if (!usable_) throwClosed(kind());
  int count = 0;
  while (takenInNext_ < takenIn_.size() && count < max) completions[count++] = takenIn_[takenInNext_++];
  while (count < max) {
    const int wanted = std::min(max - count, kPollChunk);
    const int got = pollDevice(completions + count, wanted);
    count += got;
    if (got < wanted) break;
  }
  if (count > 0) {
    uint32_t credits = 0;
    for (int i = 0; i < count; i++) {
      if ((completions[i].wcFlags & kOfSharedQueue) == 0) [[likely]] {
        credits++;
        continue;
      }
      Shared& shared = shared_.at((completions[i].wcFlags & ~kOfSharedQueue) >> kSharedNumberShift);
      completions[i].wcFlags &= kDeviceFlags;
      if (shared.users == 0 && shared.late > 0) {
        shared.late--;
        credits++;
      }
    }
    returnCredits(credits);
  } else if (failure_ != 0) {
    throw VerbsError("QUORATE_SYSTEM",
                     failure_ == EPROTO
                         ? "The device " + context_->device().name +
                               " reported a completion of a request that is not outstanding. The outcome of the "
                               "requests on this completion queue is unknown; replace it and its queue pairs."
                         : "Polling a completion queue of " + context_->device().name +
                               " failed: " + errnoText(failure_) + ". Replace it and its queue pairs.",
                     failure_, "ibv_poll_cq");
  }
  return count;
}

// Returns fewer than `max` only if the device has no more (or failed).
int IbvCompletionQueue::pollDevice(WorkCompletion* completions, int max) {
  assert(max <= kPollChunk);
  ibv_wc raw[kPollChunk];
  int count = 0;
  while (count < max && failure_ == 0) {
    const int got = ibv_poll_cq(handle_, max - count, raw);
    if (got < 0) {
      failure_ = got == -1 ? EIO : -got;
      break;
    }
    for (int i = 0; i < got && failure_ == 0; i++) {
      if (translate(raw[i], &completions[count])) count++;
    }
    if (got < max - count) break;
  }
  return count;
}

// False if there is nothing to hand out.
bool IbvCompletionQueue::translate(const ibv_wc& raw, WorkCompletion* completion) {
  const size_t slotNumber = cookieSlot(raw.wr_id);
  if ((slotNumber & kSharedSlotBit) != 0) return translateShared(raw, completion);
  const uint32_t position = cookiePosition(raw.wr_id);
  if (slotNumber >= slots_.size()) {
    failure_ = EPROTO;
    return false;
  }
  Slot& slot = slots_[slotNumber];
  // A late completion of a queue pair that was reset or destroyed: giveUp() freed its credits.
  if (slot.generation != cookieGeneration(raw.wr_id)) return false;
  if (slot.queue == nullptr || !slot.queue->outstanding(position)) {
    failure_ = EPROTO;
    return false;
  }
  // The credits of unsignaled requests before this one are free now; its own when it has been handed out.
  const uint32_t ended = slot.queue->retireThrough(position, &completion->wrId);
  if (ended > 1) returnCredits(ended - 1);

  const bool succeeded = raw.status == IBV_WC_SUCCESS;
  completion->status = raw.status;
  completion->opcode = succeeded ? raw.opcode : slot.queue->receives() ? static_cast<int>(WcOpcode::Recv) : 0;
  completion->vendorErr = raw.vendor_err;
  completion->byteLen = succeeded ? raw.byte_len : 0;
  completion->wcFlags = succeeded ? raw.wc_flags : 0;
  completion->immData = (completion->wcFlags & kWcWithImm) != 0 ? be32toh(raw.imm_data) : 0;
  completion->qpNum = raw.qp_num;
  const bool datagram = (completion->wcFlags & kWcGrh) != 0 || slot.queue->datagrams();
  completion->srcQpNum = succeeded && datagram ? raw.src_qp : 0;
  completion->slid = raw.slid;
  completion->pkeyIndex = raw.pkey_index;
  completion->sl = raw.sl;
  completion->dlidPathBits = raw.dlid_path_bits;
  return true;
}

bool IbvCompletionQueue::translateShared(const ibv_wc& raw, WorkCompletion* completion) {
  const auto found = shared_.find(static_cast<uint32_t>(cookieSlot(raw.wr_id)) & ~kSharedSlotBit);
  if (found == shared_.end() || !found->second.queue->retire(cookiePosition(raw.wr_id), &completion->wrId)) {
    failure_ = EPROTO;
    return false;
  }
  const bool succeeded = raw.status == IBV_WC_SUCCESS;
  completion->status = raw.status;
  completion->opcode = succeeded ? raw.opcode : static_cast<int>(WcOpcode::Recv);
  completion->vendorErr = raw.vendor_err;
  completion->byteLen = succeeded ? raw.byte_len : 0;
  completion->wcFlags = succeeded ? raw.wc_flags : 0;
  completion->immData = (completion->wcFlags & kWcWithImm) != 0 ? be32toh(raw.imm_data) : 0;
  completion->qpNum = raw.qp_num;
  completion->srcQpNum = (completion->wcFlags & kWcGrh) != 0 ? raw.src_qp : 0;
  completion->slid = raw.slid;
  completion->pkeyIndex = raw.pkey_index;
  completion->sl = raw.sl;
  completion->dlidPathBits = raw.dlid_path_bits;
  completion->wcFlags = (completion->wcFlags & kDeviceFlags) | sharedMark(found->first);
  return true;
}

void IbvCompletionQueue::requestNotify(bool solicitedOnly) {
  std::lock_guard<AdaptiveMutex> lock(pollMutex_);
  if (!usable_) throwClosed(kind());
  if (channel_ == nullptr) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT",
                     "The CompletionQueue has no CompletionChannel, so nothing can be notified; create it with one.");
  }
  const int errnum = ibv_req_notify_cq(handle_, solicitedOnly ? 1 : 0);
  if (errnum != 0) throwSystemError("ibv_req_notify_cq", errnum, "Arming a completion queue", "");
}

}  // namespace quorate::ibverbs

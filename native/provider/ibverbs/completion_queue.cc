// See completion_queue.h.
#include "provider/ibverbs/completion_queue.h"

#include <endian.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstdlib>
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
                                       std::shared_ptr<IbvCompletionChannel> channel, Timestamps timestamps)
    : context_(std::move(context)),
      channel_(std::move(channel)),
      timestamps_(timestamps),
      kernelFlags_(context_->device().driver == "rxe") {}

std::shared_ptr<IbvCompletionQueue> IbvCompletionQueue::create(std::shared_ptr<IbvContext> context, int depth,
                                                               std::shared_ptr<IbvCompletionChannel> channel,
                                                               const CqOptions& options) {
  std::shared_lock<std::shared_mutex> channelLock;
  if (channel != nullptr) channelLock = channel->lifecycle().useAsParent();
  std::shared_ptr<IbvCompletionQueue> queue(new IbvCompletionQueue(context, channel, options.timestamps));
  if (options.extended || options.timestamps != Timestamps::None) {
    queue->createExtended(depth);
  } else {
    queue->createPlain(depth);
  }
  const int granted = queue->handle_->cqe;
  assert(granted >= depth);
  queue->depth_.store(granted);
  queue->credits_.store(static_cast<uint32_t>(granted), std::memory_order_relaxed);
  if (channel != nullptr) channel->lifecycle().addChild(queue);
  return queue;
}

void IbvCompletionQueue::createPlain(int depth) {
  errno = 0;
  // Events of this queue carry its address; getEvent() turns it back into the object.
  handle_ =
      context_->lib().createCq(context_->handle(), depth, this, channel_ != nullptr ? channel_->handle() : nullptr, 0);
  if (handle_ == nullptr) {
    throwPinningError(
        "ibv_create_cq", errno,
        "Creating a completion queue of depth " + std::to_string(depth) + " on " + context_->device().name,
        static_cast<uint64_t>(depth) * 64,
        "The device allows " + std::to_string(context_->limits().maxCq) + " of them.");
  }
}

void IbvCompletionQueue::createExtended(int depth) {
  ibv_cq_init_attr_ex init{};
  init.cqe = static_cast<uint32_t>(depth);
  init.cq_context = this;
  init.channel = channel_ != nullptr ? channel_->handle() : nullptr;
  init.wc_flags = IBV_WC_STANDARD_FLAGS;
  if (timestamps_ == Timestamps::Raw) init.wc_flags |= IBV_WC_EX_WITH_COMPLETION_TIMESTAMP;
  if (timestamps_ == Timestamps::Wallclock) init.wc_flags |= IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK;
  errno = 0;
  extended_ = ibv_create_cq_ex(context_->handle(), &init);
  if (extended_ == nullptr) {
    const int errnum = errno;
    const std::string what = "Creating an extended completion queue of depth " + std::to_string(depth) +
                             (timestamps_ == Timestamps::None  ? ""
                              : timestamps_ == Timestamps::Raw ? " with raw time stamps"
                                                               : " with wall-clock time stamps") +
                             " on " + context_->device().name;
    if (errnum == EOPNOTSUPP || errnum == ENOSYS || (errnum == EINVAL && timestamps_ != Timestamps::None)) {
      throw VerbsError("QUORATE_UNSUPPORTED",
                       what + " failed: the device does not have it (" + errnoText(errnum) +
                           "). Ask for no time stamps, or take the time when you poll.",
                       errnum, "ibv_create_cq_ex");
    }
    throwPinningError("ibv_create_cq_ex", errnum, what, static_cast<uint64_t>(depth) * 64,
                      "The device allows " + std::to_string(context_->limits().maxCq) + " of them.");
  }
  handle_ = ibv_cq_ex_to_cq(extended_);
}

void IbvCompletionQueue::resize(int depth) {
  const auto lock = lifecycle_.use();
  if (depth < 1 || depth > context_->limits().maxCqe) {
    throw VerbsError("QUORATE_OUT_OF_RANGE", "The depth of a CompletionQueue is " + std::to_string(depth) +
                                                 ", must be 1 to " + std::to_string(context_->limits().maxCqe) +
                                                 ", the most that " + context_->device().name + " allows.");
  }
  std::lock_guard<AdaptiveMutex> polling(pollMutex_);
  const int before = depth_.load();
  const uint32_t fewer = depth < before ? static_cast<uint32_t>(before - depth) : 0;
  const uint32_t taken = takeCredits(fewer);
  if (taken < fewer) {
    returnCredits(taken);
    throw VerbsError("QUORATE_LIMIT", "A completion queue of depth " + std::to_string(before) + " cannot shrink to " +
                                          std::to_string(depth) + ": " +
                                          std::to_string(static_cast<uint32_t>(before) - taken) +
                                          " requests are outstanding or kept back for a shared receive queue.");
  }
  const auto resizeCq = context_->lib().resizeCq;
  const int errnum = resizeCq == nullptr ? EOPNOTSUPP : std::abs(resizeCq(handle_, depth));
  if (errnum != 0) {
    returnCredits(taken);
    const std::string what = "Resizing a completion queue from " + std::to_string(before) + " to " +
                             std::to_string(depth) + " on " + context_->device().name;
    if (errnum == EOPNOTSUPP || errnum == ENOSYS) {
      throw VerbsError("QUORATE_UNSUPPORTED",
                       what + " failed: the device does not have it (" + errnoText(errnum) +
                           "). Create the queue as deep as it will have to be.",
                       errnum, "ibv_resize_cq");
    }
    throwPinningError("ibv_resize_cq", errnum, what, static_cast<uint64_t>(depth) * 64, "");
  }
  const int granted = handle_->cqe;
  assert(granted >= depth);
  depth_.store(granted);
  returnCredits(static_cast<uint32_t>(granted - before + static_cast<int>(taken)));
}

IbvCompletionQueue::~IbvCompletionQueue() {
  closeInDestructor(this, {context_, channel_});
  if (!closed() && handle_ != nullptr) handle_->cq_context = nullptr;  // it lives on, and events carry this
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
    // The shared receives whose completions nobody can poll any more.
    for (; takenInNext_ < takenIn_.size(); takenInNext_++) {
      const WorkCompletion& one = takenIn_[takenInNext_];
      if ((one.wcFlags & kOfSharedQueue) == 0) continue;
      if (const auto& queue = sharedOf(one).queue) queue->giveBack(1);
    }
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
    assert(takenIn_.size() <= static_cast<size_t>(depth()));
  }
}

void IbvCompletionQueue::attachShared(const std::shared_ptr<SharedWorkQueue>& queue, bool datagrams) {
  std::lock_guard<AdaptiveMutex> lock(pollMutex_);
  for (auto& [number, one] : shared_) {
    if (one.users == 0 && one.late == 0 && one.queue != nullptr && one.queue->ended()) one.queue.reset();
  }
  Shared& shared = shared_[queue->number()];
  if (shared.users == 0) {
    const uint32_t taken = takeCredits(queue->capacity() - shared.late);  // it holds the rest already
    if (taken < queue->capacity() - shared.late) {
      returnCredits(taken);
      if (shared.queue == nullptr) shared_.erase(queue->number());
      throw VerbsError("QUORATE_LIMIT", "A completion queue of depth " + std::to_string(depth()) + " has room for " +
                                            std::to_string(taken) +
                                            " more completions, but the shared receive queue can yield " +
                                            std::to_string(queue->capacity()) + "; make it deeper.");
    }
    shared.queue = queue;
    shared.late = 0;
  }
  shared.users++;
  shared.datagrams = shared.datagrams || datagrams;
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

IbvCompletionQueue::Shared& IbvCompletionQueue::sharedOf(const WorkCompletion& completion) {
  return shared_.at((completion.wcFlags & ~kOfSharedQueue) >> kSharedNumberShift);
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
      Shared& shared = sharedOf(completions[i]);
      if (shared.queue != nullptr) shared.queue->giveBack(1);
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
  uint64_t times[kPollChunk];
  int count = 0;
  while (count < max && failure_ == 0) {
    const int got =
        extended_ != nullptr ? pollExtended(raw, times, max - count) : ibv_poll_cq(handle_, max - count, raw);
    if (got < 0) {
      failure_ = got == -1 ? EIO : -got;
      break;
    }
    for (int i = 0; i < got && failure_ == 0; i++) {
      if (!translate(raw[i], &completions[count])) continue;
      completions[count++].timestamp = timestamps_ != Timestamps::None ? times[i] : 0;
    }
    if (got < max - count) break;
  }
  return count;
}

// As ibv_poll_cq(). Only what the queue was made to report is read.
int IbvCompletionQueue::pollExtended(ibv_wc* completions, uint64_t* timestamps, int max) {
  ibv_poll_cq_attr attributes{};
  int result = ibv_start_poll(extended_, &attributes);
  if (result == ENOENT) return 0;
  if (result != 0) return -std::abs(result);
  int count = 0;
  for (;;) {
    ibv_wc& wc = completions[count];
    wc = {};
    wc.wr_id = extended_->wr_id;
    wc.status = extended_->status;
    wc.vendor_err = ibv_wc_read_vendor_err(extended_);
    wc.qp_num = ibv_wc_read_qp_num(extended_);
    timestamps[count] = 0;
    if (wc.status == IBV_WC_SUCCESS) {
      wc.opcode = ibv_wc_read_opcode(extended_);
      wc.wc_flags = ibv_wc_read_wc_flags(extended_);
      wc.byte_len = ibv_wc_read_byte_len(extended_);
      if ((flagsOf(wc) & kWcWithInv) != 0) {
        wc.invalidated_rkey = ibv_wc_read_invalidated_rkey(extended_);
      } else if ((wc.wc_flags & IBV_WC_WITH_IMM) != 0) {
        wc.imm_data = ibv_wc_read_imm_data(extended_);
      }
      wc.src_qp = ibv_wc_read_src_qp(extended_);
      wc.slid = static_cast<uint16_t>(ibv_wc_read_slid(extended_));
      wc.sl = ibv_wc_read_sl(extended_);
      wc.dlid_path_bits = ibv_wc_read_dlid_path_bits(extended_);
      if (timestamps_ == Timestamps::Raw) timestamps[count] = ibv_wc_read_completion_ts(extended_);
      if (timestamps_ == Timestamps::Wallclock) timestamps[count] = ibv_wc_read_completion_wallclock_ns(extended_);
    }
    if (++count == max) break;
    result = ibv_next_poll(extended_);
    if (result != 0) break;  // ENOENT: no more; what else is wrong shows at the next call
  }
  ibv_end_poll(extended_);
  return count;
}

// The driver of rxe hands out the kernel's own flags, in which "with invalidate" has the bit that means a good checksum
// to users; rxe reports no checksums.
uint32_t IbvCompletionQueue::flagsOf(const ibv_wc& raw) const {
  constexpr uint32_t kKernelWithInvalidate = 1u << 2;
  if (!kernelFlags_ || (raw.wc_flags & kKernelWithInvalidate) == 0) return raw.wc_flags;
  return (raw.wc_flags & ~kKernelWithInvalidate) | kWcWithInv;
}

namespace {

// What comes with a completion in the place of immediate data.
uint32_t extraData(const ibv_wc& raw, uint32_t wcFlags) {
  return (wcFlags & kWcWithImm) != 0 ? be32toh(raw.imm_data) : (wcFlags & kWcWithInv) != 0 ? raw.invalidated_rkey : 0;
}

}  // namespace

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
  completion->wcFlags = succeeded ? flagsOf(raw) : 0;
  completion->immData = extraData(raw, completion->wcFlags);
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
  if (found != shared_.end() && found->second.queue == nullptr) return false;  // late, of a queue that has ended
  if (found == shared_.end() || !found->second.queue->retire(cookiePosition(raw.wr_id), &completion->wrId)) {
    failure_ = EPROTO;
    return false;
  }
  const bool succeeded = raw.status == IBV_WC_SUCCESS;
  completion->status = raw.status;
  completion->opcode = succeeded ? raw.opcode : static_cast<int>(WcOpcode::Recv);
  completion->vendorErr = raw.vendor_err;
  completion->byteLen = succeeded ? raw.byte_len : 0;
  completion->wcFlags = succeeded ? flagsOf(raw) : 0;
  completion->immData = extraData(raw, completion->wcFlags);
  completion->qpNum = raw.qp_num;
  const bool datagram = (completion->wcFlags & kWcGrh) != 0 || found->second.datagrams;
  completion->srcQpNum = succeeded && datagram ? raw.src_qp : 0;
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

// See post_list.h.
#include "addon/post_list.h"

#include <algorithm>
#undef NDEBUG  // the invariants stay on in every build
#include <cassert>
#include <cerrno>
#include <utility>

#include "addon/clock.h"
#include "addon/cpu_pause.h"

namespace quorate::addon {

namespace {

// Fields of a request and of a completion; equal to WR and WC of lib/verbs/native.ts.
enum RequestField : size_t {
  kOp = 0,
  kSlot = 1,
  kWrId = 2,
  kLocalAddress = 3,
  kLength = 4,
  kLkey = 5,
  kRemoteAddress = 6,
  kRkey = 7,
  kCompareAddLow = 8,
  kCompareAddHigh = 9,
  kSwapLow = 10,
  kSwapHigh = 11,
  kImmData = 12,
  kSendFlags = 13,
  kEpoch = 14,
  // UD, in the place of the operands of atomics as in ibv_send_wr.
  kRemoteQpNum = 8,
  kRemoteQkey = 9,
  kAddressHandle = 10,
  // In the place of immediate data, as in ibv_send_wr.
  kInvalidateRkey = 12,
};
enum CompletionField : size_t {
  kcWrId = 0,
  kcStatus = 1,
  kcOpcode = 2,
  kcByteLen = 3,
  kcQpNum = 4,
  kcImmData = 5,
  kcVendorErr = 6,
  kcWcFlags = 7,
  kcSrcQpNum = 8,
};

constexpr uint64_t kLimit53 = 1ull << 53;
constexpr uint64_t kLimit32 = 1ull << 32;
constexpr size_t kPollBatch = 64;
constexpr int kPollsPerClockRead = 8;
// Polls before the first pause: most completions that are waited for are in by then.
constexpr int kEagerPolls = 16;

inline bool toUint32(double value, uint32_t* out) {
  uint64_t wide = 0;
  if (!toInteger(value, kLimit32, &wide)) return false;
  *out = static_cast<uint32_t>(wide);
  return true;
}

inline bool toUint64(double low, double high, uint64_t* out) {
  uint32_t lowBits = 0, highBits = 0;
  if (!toUint32(low, &lowBits) || !toUint32(high, &highBits)) return false;
  *out = static_cast<uint64_t>(highBits) << 32 | lowBits;
  return true;
}

}  // namespace

PostList::PostList(std::shared_ptr<CompletionQueue> completionQueue, size_t maxWorkRequests, size_t maxCompletions)
    : maxWorkRequests_(maxWorkRequests),
      maxCompletions_(maxCompletions),
      workRequests_(maxWorkRequests * kWrStride),
      completions_(maxCompletions * kWcStride),
      staged_(maxWorkRequests),
      polled_(std::min(maxCompletions, kPollBatch)),
      completionQueue_(std::move(completionQueue)) {
  assert(maxWorkRequests >= 1 && maxCompletions >= maxWorkRequests && maxCompletions <= kPostListMaxEntries);
}

void PostList::close() {
  closed_ = true;
  for (auto& entry : queuePairs_) entry.reset();
  for (auto& entry : addressHandles_) entry.reset();
  for (auto& entry : fences_) entry.reset();
  for (auto& entry : memories_) entry.reset();
  memorySlotsUsed_ = 0;
  completionQueue_.reset();
}

void PostList::bindQueuePair(size_t slot, std::shared_ptr<QueuePair> queuePair) {
  const bool datagrams = queuePair != nullptr && queuePair->type() == QpType::Ud;
  queuePairs_.at(slot) = std::move(queuePair);
  datagramSlots_ = (datagramSlots_ & ~(1ull << slot)) | static_cast<uint64_t>(datagrams) << slot;
}

void PostList::bindAddressHandle(size_t slot, std::shared_ptr<AddressHandle> addressHandle) {
  addressHandles_.at(slot) = std::move(addressHandle);
}

void PostList::bindFence(size_t slot, std::shared_ptr<Fence> fence) {
  fences_.at(slot) = std::move(fence);
}

void PostList::bindMemory(size_t slot, std::shared_ptr<Memory> memory) {
  memories_.at(slot) = std::move(memory);
  memorySlotsUsed_ = kPostListSlots;
  while (memorySlotsUsed_ > 0 && memories_[memorySlotsUsed_ - 1] == nullptr) memorySlotsUsed_--;
}

bool PostList::inBoundMemory(uint64_t address, uint64_t length) const {
  for (size_t slot = 0; slot < memorySlotsUsed_; slot++) {
    const std::shared_ptr<Memory>& memory = memories_[slot];
    if (memory == nullptr || memory->closed()) continue;
    const uint64_t start = reinterpret_cast<uintptr_t>(memory->data());
    if (address >= start && length <= memory->length() && address - start <= memory->length() - length) return true;
  }
  return false;
}

void PostList::complete(double wrId, int status, int opcode, uint32_t byteLen, uint32_t qpNum, uint32_t vendorErr) {
  assert(filled_ < maxCompletions_);
  double* completion = completions_.data() + filled_++ * kWcStride;
  completion[kcWrId] = wrId;
  completion[kcStatus] = status;
  completion[kcOpcode] = opcode;
  completion[kcByteLen] = byteLen;
  completion[kcQpNum] = qpNum;
  completion[kcImmData] = 0;
  completion[kcVendorErr] = vendorErr;
  completion[kcWcFlags] = 0;
  completion[kcSrcQpNum] = 0;
}

int PostList::decode(const double* request, size_t slot, SendWorkRequest* out) const {
  uint64_t op = 0;
  // Not BIND_MW, which names objects.
  if (!toInteger(request[kOp], 10, &op) || op == static_cast<uint64_t>(WrOpcode::BindMw)) return EINVAL;
  out->opcode = static_cast<WrOpcode>(op);
  uint32_t flags = 0;
  if (!toInteger(request[kWrId], kLimit53, &out->wrId) ||
      !toInteger(request[kLocalAddress], kLimit53, &out->localAddress) || !toUint32(request[kLength], &out->length) ||
      !toUint32(request[kLkey], &out->lkey) || !toInteger(request[kRemoteAddress], kLimit53, &out->remoteAddress) ||
      !toUint32(request[kRkey], &out->rkey) || !toUint32(request[kSendFlags], &flags) ||
      (flags & ~(15u | kPostUnsignaled)) != 0) {
    return EINVAL;
  }
  const bool signaled = (flags & kPostUnsignaled) == 0;
  out->sendFlags = (flags & ~(kPostUnsignaled | kSendSignaled)) | (signaled ? kSendSignaled : 0u);
  // An inline request carries no lkey, so nobody else would check where it copies from.
  if ((flags & kSendInline) != 0 && out->length > 0 && !inBoundMemory(out->localAddress, out->length)) return EFAULT;
  if (out->opcode == WrOpcode::RdmaWriteWithImm || out->opcode == WrOpcode::SendWithImm) {
    if (!toUint32(request[kImmData], &out->immData)) return EINVAL;
  } else if (out->opcode == WrOpcode::LocalInv || out->opcode == WrOpcode::SendWithInv) {
    if (!toUint32(request[kInvalidateRkey], &out->invalidateRkey)) return EINVAL;
  }
  if ((datagramSlots_ >> slot & 1) != 0) {
    uint64_t handle = 0;
    if (!toUint32(request[kRemoteQpNum], &out->remoteQpNum) || !toUint32(request[kRemoteQkey], &out->remoteQkey) ||
        !toInteger(request[kAddressHandle], kPostListSlots, &handle)) {
      return EINVAL;
    }
    out->addressHandle = addressHandles_[handle].get();
    if (out->addressHandle == nullptr) return EBADF;
  }
  if (out->opcode == WrOpcode::CompareSwap || out->opcode == WrOpcode::FetchAdd) {
    if (!toUint64(request[kCompareAddLow], request[kCompareAddHigh], &out->compareAdd) ||
        !toUint64(request[kSwapLow], request[kSwapHigh], &out->swap)) {
      return EINVAL;
    }
  }
  return 0;
}

void PostList::postBatch(size_t slot, size_t count) {
  if (count == 0) return;
  QueuePair& queuePair = *queuePairs_[slot];
  int errnum = 0;
  size_t accepted = 0;
  try {
    accepted = queuePair.postSend(staged_.data(), count, &errnum);
  } catch (const VerbsError& error) {
    errnum = error.errnum != 0 ? error.errnum : EBADF;  // closed
  }
  assert(accepted <= count);
  if (accepted == count) return;
  if (errnum == 0) errnum = EIO;
  refusedSlots_ |= 1ull << slot;
  refusedErrno_[slot] = errnum;
  for (size_t i = accepted; i < count; i++) {
    complete(static_cast<double>(staged_[i].wrId), kStatusPostRefused, 0, 0, 0, static_cast<uint32_t>(errnum));
  }
}

bool PostList::fencedCopy(const double* request) {
  const double wrId = request[kWrId];
  const auto refuse = [&](int errnum) {
    complete(wrId, kStatusPostRefused, kOpFencedCopy, 0, 0, static_cast<uint32_t>(errnum));
    return false;
  };
  uint64_t slot = 0, source = 0, target = 0, epoch = 0;
  uint32_t length = 0;
  if (!toInteger(request[kSlot], kPostListSlots, &slot) || !toInteger(request[kLocalAddress], kLimit53, &source) ||
      !toInteger(request[kRemoteAddress], kLimit53, &target) || !toUint32(request[kLength], &length) ||
      !toInteger(request[kEpoch], kLimit53, &epoch)) {
    return refuse(EINVAL);
  }
  if (fences_[slot] == nullptr) return refuse(EBADF);
  if (!inBoundMemory(source, length) || !inBoundMemory(target, length)) return refuse(EFAULT);
  switch (fences_[slot]->copy(epoch, reinterpret_cast<void*>(target), reinterpret_cast<const void*>(source), length)) {
    case Fence::Outcome::Copied:
      complete(wrId, 0, kOpFencedCopy, length, 0, 0);
      return true;
    case Fence::Outcome::Closed:
      return refuse(EBADF);
    case Fence::Outcome::Fenced:
      break;
  }
  complete(wrId, kStatusFenced, kOpFencedCopy, 0, 0, 0);
  return false;
}

void PostList::pollOnce() {
  for (;;) {
    const size_t room = std::min(maxCompletions_ - filled_, polled_.size());
    if (room == 0) return;
    const int count = completionQueue_->poll(polled_.data(), static_cast<int>(room));
    assert(count >= 0 && static_cast<size_t>(count) <= room);
    double* completion = completions_.data() + filled_ * kWcStride;
    for (int i = 0; i < count; i++, completion += kWcStride) {
      const WorkCompletion& from = polled_[static_cast<size_t>(i)];
      completion[kcWrId] = static_cast<double>(from.wrId);
      completion[kcStatus] = from.status;
      completion[kcOpcode] = from.opcode;
      completion[kcByteLen] = from.byteLen;
      completion[kcQpNum] = from.qpNum;
      completion[kcImmData] = from.immData;
      completion[kcVendorErr] = from.vendorErr;
      completion[kcWcFlags] = from.wcFlags;
      completion[kcSrcQpNum] = from.srcQpNum;
    }
    filled_ += static_cast<size_t>(count);
    if (static_cast<size_t>(count) < polled_.size()) return;  // the queue was emptied
  }
}

size_t PostList::submit(size_t count, uint64_t spinNs, size_t wanted) {
  assert(count <= maxWorkRequests_ && wanted <= maxCompletions_ && spinNs <= kMaxSpinNs);
  filled_ = 0;
  refusedSlots_ = 0;

  // Requests of one queue pair that follow each other are staged and posted together.
  size_t batchSlot = 0, batchCount = 0;
  for (size_t i = 0; i < count; i++) {
    const double* request = workRequests_.data() + i * kWrStride;
    if (request[kOp] == kOpFencedCopy) {
      postBatch(batchSlot, std::exchange(batchCount, 0));
      if (fencedCopy(request)) continue;
      // Nothing behind a copy that did not happen may go out: what was to be announced or replicated is not there.
      const bool fenced = completions_[(filled_ - 1) * kWcStride + kcStatus] == kStatusFenced;
      for (size_t rest = i + 1; rest < count; rest++) {
        const double* behind = workRequests_.data() + rest * kWrStride;
        complete(behind[kWrId], fenced ? kStatusFenced : kStatusPostRefused, 0, 0, 0, fenced ? 0 : ECANCELED);
      }
      break;
    }
    uint64_t slot = 0;
    const bool slotGood = toInteger(request[kSlot], kPostListSlots, &slot);
    if (!slotGood || queuePairs_[slot] == nullptr) {
      complete(request[kWrId], kStatusPostRefused, 0, 0, 0, slotGood ? EBADF : EINVAL);
      continue;
    }
    if (batchCount > 0 && slot != batchSlot) postBatch(batchSlot, std::exchange(batchCount, 0));
    batchSlot = slot;
    if ((refusedSlots_ >> slot & 1) != 0) {
      complete(request[kWrId], kStatusPostRefused, 0, 0, 0, static_cast<uint32_t>(refusedErrno_[slot]));
      continue;
    }
    const int errnum = decode(request, slot, &staged_[batchCount]);
    if (errnum == 0) {
      batchCount++;
      continue;
    }
    postBatch(batchSlot, std::exchange(batchCount, 0));
    if ((refusedSlots_ >> slot & 1) == 0) {
      refusedSlots_ |= 1ull << slot;
      refusedErrno_[slot] = errnum;
    }
    complete(request[kWrId], kStatusPostRefused, 0, 0, 0, static_cast<uint32_t>(refusedErrno_[slot]));
  }
  postBatch(batchSlot, batchCount);

  try {
    pollOnce();
    if (filled_ < wanted && spinNs > 0) {
      for (int i = 0; i < kEagerPolls && filled_ < wanted; i++) pollOnce();
    }
    if (filled_ < wanted && spinNs > 0) {
      const uint64_t deadline = nowNs() + spinNs;
      do {
        for (int i = 0; i < kPollsPerClockRead && filled_ < wanted; i++) {
          cpuPause();
          pollOnce();
        }
      } while (filled_ < wanted && nowNs() < deadline);
    }
  } catch (const VerbsError&) {
    // The completions that are in must not be lost with the exception; the queue fails again at the next submit.
    if (filled_ == 0) throw;
  }
  return filled_;
}

}  // namespace quorate::addon

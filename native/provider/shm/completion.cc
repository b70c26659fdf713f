// See completion.h.
#include "provider/shm/completion.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "provider/shm/queue_pair.h"

namespace quorate::shm {
namespace {

// poll() also looks without a doorbell now and then: a requester may have died between its completion and the doorbell.
constexpr uint32_t kPollsWithoutLook = 1024;
constexpr int kMaxStaleEvents = 4096;  // skipped in one getEvent()
constexpr uint32_t kMaxArmingsBack = 1u << 27;  // of an event: none is on its way for so long

}  // namespace

// ---------------------------------------------------------------------------------------------------------------
// Channel

ShmCompletionChannel::ShmCompletionChannel(std::shared_ptr<ShmContext> context)
    : context_(std::move(context)), number_(context_->nextChannelNumber()) {
  const std::string name = ShmDirectory::channelName(context_->hcaId(), number_);
  if (mkfifoat(context_->directory()->fd(), name.c_str(), 0600) != 0) {
    throw systemError("mkfifoat", errno, "the FIFO of a completion channel (" + name + ")");
  }
  // Open for writing too: then it never reports end of file, and local completions use the same way.
  fifo_ =
      FileDescriptor(openat(context_->directory()->fd(), name.c_str(), O_RDWR | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC));
  if (!fifo_) {
    const int errnum = errno;
    unlinkat(context_->directory()->fd(), name.c_str(), 0);
    throw systemError("openat", errnum, "the FIFO of a completion channel (" + name + ")");
  }
}

ShmCompletionChannel::~ShmCompletionChannel() {
  close();
}

int ShmCompletionChannel::fd() const {
  const std::lock_guard<std::mutex> guard(mutex_);
  if (closed()) throw VerbsError("QUORATE_CLOSED", "This CompletionChannel was closed");
  return fifo_.get();
}

std::shared_ptr<CompletionQueue> ShmCompletionChannel::getEvent() {
  context_->requireOpen(kind());
  for (int i = 0; i < kMaxStaleEvents; i++) {
    ChannelEvent event;
    std::shared_ptr<ShmCompletionQueue> completionQueue;
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      if (closed()) throw VerbsError("QUORATE_CLOSED", "This CompletionChannel was closed");
      const ssize_t length = read(fifo_.get(), &event, sizeof(event));
      if (length < 0 && errno == EINTR) continue;
      if (length < 0 && errno != EAGAIN) throw systemError("read", errno, "the FIFO of a completion channel");
      if (length != static_cast<ssize_t>(sizeof(event))) return nullptr;
      sendUnsent();
      const auto entry = completionQueues_.find(event.completionQueue);
      if (entry == completionQueues_.end()) continue;
      completionQueue = entry->second.lock();
    }
    // Without the mutex: its last reference may be this one by now, and its end takes that.
    if (completionQueue != nullptr && completionQueue->takeEvent(event.arming)) return completionQueue;
  }
  return nullptr;  // the descriptor stays readable: the rest comes with the next call
}

// What found the FIFO full, now that an event has been read. With mutex_ held.
void ShmCompletionChannel::sendUnsent() {
  for (const auto& [index, queue] : completionQueues_) {
    CompletionQueueSlot& slot = context_->control()->completionQueues[index];
    if (slot.unsent.load(std::memory_order_seq_cst) == 0) [[likely]]
      continue;
    slot.unsent.store(0, std::memory_order_seq_cst);
    wakeIfArmed(slot, index, true, [this](uint32_t, uint32_t completionQueue, uint32_t arming) {
      return write(completionQueue, arming);
    });
  }
}

void ShmCompletionChannel::close() {
  if (closed()) return;
  if (!context_->forked()) {
    children_.closeAll();
  }
  const std::lock_guard<std::mutex> guard(mutex_);
  if (closed_.exchange(true)) return;
  if (!context_->forked()) {
    unlinkat(context_->directory()->fd(), ShmDirectory::channelName(context_->hcaId(), number_).c_str(), 0);
  }
  fifo_.reset();
}

void ShmCompletionChannel::attach(uint32_t index, const std::shared_ptr<ShmCompletionQueue>& completionQueue) {
  const std::lock_guard<std::mutex> guard(mutex_);
  if (closed()) throw VerbsError("QUORATE_CLOSED", "This CompletionChannel was closed");
  completionQueues_[index] = completionQueue;
  children_.add(completionQueue);
}

void ShmCompletionChannel::detach(uint32_t index) {
  const std::lock_guard<std::mutex> guard(mutex_);
  completionQueues_.erase(index);
}

bool ShmCompletionChannel::write(uint32_t index, uint32_t arming) {
  // Without mutex_: the queue that calls keeps this channel alive, and is closed before the descriptor is.
  const ChannelEvent event{index, arming};
  return ::write(fifo_.get(), &event, sizeof(event)) == static_cast<ssize_t>(sizeof(event));
}

// ---------------------------------------------------------------------------------------------------------------
// Queue

uint64_t timestampNow(Timestamps kind) {
  timespec now{};
  clock_gettime(kind == Timestamps::Wallclock ? CLOCK_REALTIME : CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

namespace {

void requireDepth(int depth) {
  if (depth >= 1 && depth <= kMaxCqe) return;
  throw VerbsError("QUORATE_OUT_OF_RANGE", "The depth of a completion queue is " + std::to_string(depth) +
                                               ", must be 1 to " + std::to_string(kMaxCqe));
}

}  // namespace

ShmCompletionQueue::ShmCompletionQueue(std::shared_ptr<ShmContext> context, int depth,
                                       std::shared_ptr<ShmCompletionChannel> channel, Timestamps timestamps)
    : context_(std::move(context)), channel_(std::move(channel)), depth_(depth), timestamps_(timestamps) {
  ring_.resize(static_cast<size_t>(depth));
  // Last of all: where there is none, no destructor may give back what was not taken.
  index_ = context_->completionQueueIndices().take();
}

std::shared_ptr<ShmCompletionQueue> ShmCompletionQueue::create(std::shared_ptr<ShmContext> context, int depth,
                                                               std::shared_ptr<CompletionChannel> channel,
                                                               Timestamps timestamps) {
  requireDepth(depth);
  auto own = std::dynamic_pointer_cast<ShmCompletionChannel>(channel);
  if (channel != nullptr && own == nullptr) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT", "The completion channel belongs to another provider");
  }
  if (own != nullptr && own->context() != context) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT",
                     "The completion channel belongs to another context; use one made by this context");
  }
  std::shared_ptr<ShmCompletionQueue> queue(new ShmCompletionQueue(context, depth, own, timestamps));
  CompletionQueueSlot& slot = queue->slot();
  // Events for the slot's last user come too late.
  queue->takenArming_ = armingOf(slot.armed.fetch_and(~kArmedMask, std::memory_order_seq_cst));
  // `sleepers` stays: a thread may still sleep on the slot's last user, and counts itself out when it wakes.
  slot.timestamps.store(static_cast<uint32_t>(timestamps), std::memory_order_seq_cst);
  slot.unsent.store(0, std::memory_order_seq_cst);
  slot.channel.store(own == nullptr ? 0 : own->number(), std::memory_order_seq_cst);
  if (own != nullptr) own->attach(queue->index_, queue);
  return queue;
}

ShmCompletionQueue::~ShmCompletionQueue() {
  close();
}

void ShmCompletionQueue::close() {
  if (closed()) return;
  if (context_->forked()) {
    closed_.store(true);
    return;
  }
  children_.closeAll();
  {
    const std::lock_guard<SpinLock> guard(lock_);
    if (closed_.exchange(true)) return;
    // A queue pair in `receivers_` is one that another thread is making; it is refused as a child, and forgotten then.
    slot().armed.fetch_and(~kArmedMask, std::memory_order_seq_cst);
    slot().channel.store(0, std::memory_order_seq_cst);
  }
  if (channel_ != nullptr) channel_->detach(index_);
  context_->completionQueueIndices().give(index_);
}

int ShmCompletionQueue::poll(WorkCompletion* completions, int max) {
  if (context_->forked()) [[unlikely]]
    context_->requireOpen(kind());
  if (context_->attentionWanted()) [[unlikely]]
    context_->attend(false);
  const std::lock_guard<SpinLock> guard(lock_);
  if (closed_.load(std::memory_order_relaxed)) [[unlikely]]
    throw VerbsError("QUORATE_CLOSED", "This CompletionQueue was closed");
  int taken = overflowed_ ? 0 : takeLocal(completions, max);
  if (taken < max && !overflowed_) taken += takeReceives(completions + taken, max - taken);
  if (overflowed_) [[unlikely]] {
    throw VerbsError("QUORATE_LIMIT",
                     "A completion queue of depth " + std::to_string(depth()) +
                         " overflowed: completions were lost, and its queue pairs are of no more use. Create it "
                         "deeper than all requests that can be outstanding on its queue pairs, or poll more often.");
  }
  return taken;
}

int ShmCompletionQueue::takeLocal(WorkCompletion* completions, int max) {
  int taken = 0;
  while (taken < max && count_ > 0) {
    const Entry& entry = ring_[head_];
    completions[taken++] = entry.completion;
    if (entry.queuePair != nullptr) entry.queuePair->retireSends(entry.sendIndex);
    head_ = head_ + 1 == ring_.size() ? 0 : head_ + 1;
    count_--;
  }
  return taken;
}

int ShmCompletionQueue::takeReceives(WorkCompletion* completions, int max) {
  const uint32_t doorbell = slot().doorbell.load(std::memory_order_seq_cst);
  if (doorbell == seenDoorbell_ && !lookAgain_ && ++pollsSinceLook_ < kPollsWithoutLook) [[likely]]
    return 0;
  pollsSinceLook_ = 0;
  seenDoorbell_ = doorbell;
  int taken = 0;
  size_t left = 0;
  for (ShmQueuePair* queuePair : receivers_) taken += queuePair->takeReceives(completions + taken, max - taken, &left);
  lookAgain_ = left > 0;
  // A device would have had to hold all of these at once.
  if (count_ + static_cast<size_t>(taken) + left > static_cast<size_t>(depth())) overflowed_ = true;
  return taken;
}

void ShmCompletionQueue::resize(int depth) {
  context_->requireOpen(kind());
  requireDepth(depth);
  std::vector<Entry> larger(static_cast<size_t>(depth));
  const std::lock_guard<SpinLock> guard(lock_);
  if (closed()) throw VerbsError("QUORATE_CLOSED", "This CompletionQueue was closed");
  size_t held = count_;
  // Those of receives are still with their queue pairs, and are of this queue all the same.
  for (ShmQueuePair* queuePair : receivers_) queuePair->takeReceives(nullptr, 0, &held);
  if (held > larger.size()) {
    throw VerbsError("QUORATE_LIMIT", "The completion queue holds " + std::to_string(held) +
                                          " completions, which do not fit into " + std::to_string(depth) +
                                          "; poll them first.");
  }
  for (size_t i = 0; i < count_; i++) larger[i] = ring_[(head_ + i) % ring_.size()];
  ring_.swap(larger);
  head_ = 0;
  depth_.store(depth, std::memory_order_relaxed);
}

void ShmCompletionQueue::requestNotify(bool solicitedOnly) {
  context_->requireOpen(kind());
  const std::lock_guard<SpinLock> guard(lock_);
  if (closed()) throw VerbsError("QUORATE_CLOSED", "This CompletionQueue was closed");
  // A new arming also if it is armed: the event of the present one may be on its way.
  uint32_t armed = slot().armed.load(std::memory_order_seq_cst);
  uint32_t next = 0;
  do {
    // A request for any completion is not weakened by a later one for solicited ones only.
    const bool any = !solicitedOnly || armedFor(armed) == Armed::Any;
    next = (armed & ~kArmedMask) + kArmedUnit + static_cast<uint32_t>(any ? Armed::Any : Armed::SolicitedOnly);
  } while (!slot().armed.compare_exchange_weak(armed, next, std::memory_order_seq_cst));
  // The count of armings wraps around: whose event was taken last stays near enough to tell earlier from later.
  const uint32_t kept = armingOf(next) - kMaxArmingsBack;
  if (isLaterArming(kept, takenArming_)) takenArming_ = kept;
  lookAgain_ = true;  // the next poll must not rely on a doorbell from before
}

bool ShmCompletionQueue::push(const WorkCompletion& completion, ShmQueuePair* queuePair, uint64_t sendIndex) {
  bool fits;
  {
    const std::lock_guard<SpinLock> guard(lock_);
    if (count_ == ring_.size()) overflowed_ = true;
    fits = !overflowed_;
    if (fits) [[likely]] {
      size_t tail = head_ + count_;
      if (tail >= ring_.size()) tail -= ring_.size();
      ring_[tail] = Entry{completion, queuePair, sendIndex};
      if (timestamps_ != Timestamps::None) [[unlikely]]
        ring_[tail].completion.timestamp = timestampNow(timestamps_);
      count_++;
    }
  }
  // Completions of sends are never solicited, errors always are (ibv_req_notify_cq(3)).
  wakeIfArmed(slot(), index_, completion.status != 0 || !fits,
              [this](uint32_t, uint32_t, uint32_t arming) { return wake(arming); });
  return fits;
}

void ShmCompletionQueue::attachReceiver(ShmQueuePair* queuePair) {
  const std::lock_guard<SpinLock> guard(lock_);
  if (closed()) throw VerbsError("QUORATE_CLOSED", "The CompletionQueue for a new QueuePair was closed");
  receivers_.push_back(queuePair);
}

void ShmCompletionQueue::forget(ShmQueuePair* queuePair) {
  {
    const std::lock_guard<SpinLock> guard(lock_);
    std::erase(receivers_, queuePair);
  }
  forgetSends(queuePair);
}

void ShmCompletionQueue::forgetSends(ShmQueuePair* queuePair) {
  const std::lock_guard<SpinLock> guard(lock_);
  for (size_t i = 0; i < count_; i++) {
    Entry& entry = ring_[(head_ + i) % ring_.size()];
    if (entry.queuePair == queuePair) entry.queuePair = nullptr;
  }
}

void ShmCompletionQueue::ring(bool solicited) {
  ringDoorbell(slot(), index_, solicited, [this](uint32_t, uint32_t, uint32_t arming) { return wake(arming); });
}

bool ShmCompletionQueue::wake(uint32_t arming) {
  return channel_ == nullptr || channel_->write(index_, arming);
}

bool ShmCompletionQueue::takeEvent(uint32_t arming) {
  const std::lock_guard<SpinLock> guard(lock_);
  if (closed()) return false;  // the slot may be another queue's
  uint32_t armed = slot().armed.load(std::memory_order_seq_cst);
  if (!isLaterArming(arming, takenArming_) || isLaterArming(arming, armingOf(armed))) return false;
  takenArming_ = arming;
  // Whoever wrote the event may not have come to this, but a later arming stays.
  if (armingOf(armed) == arming) {
    slot().armed.compare_exchange_strong(armed, armed & ~kArmedMask, std::memory_order_seq_cst);
  }
  return true;
}

}  // namespace quorate::shm

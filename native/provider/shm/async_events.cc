// See async_events.h.
#include "provider/shm/async_events.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "provider/shm/context.h"
#include "provider/shm/peer_hca.h"
#include "provider/shm/shared_receive_queue.h"

namespace quorate::shm {
namespace {

// Beyond that the oldest event goes: nobody has read any for long. Queue pairs are the most there can be of one kind.
constexpr size_t kMaxPendingEvents = 4 * kMaxQueuePairs;
// In one getAsyncEvent(): as many as a FIFO holds. Peers write to it, and one may do so without end.
constexpr int kMaxReads = 128;

}  // namespace

int AsyncEvents::fd() {
  const std::lock_guard<std::mutex> guard(mutex_);
  if (closed_) throw VerbsError("QUORATE_CLOSED", "The context was closed");
  if (!fifo_) {
    const uint32_t number = context_.nextChannelNumber();
    const std::string name = ShmDirectory::channelName(context_.hcaId(), number);
    const int at = context_.directory()->fd();
    if (mkfifoat(at, name.c_str(), 0600) != 0) {
      throw systemError("mkfifoat", errno, "the FIFO of asynchronous events (" + name + ")");
    }
    fifo_ = FileDescriptor(openat(at, name.c_str(), O_RDWR | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC));
    if (!fifo_) {
      const int errnum = errno;
      unlinkat(at, name.c_str(), 0);
      throw systemError("openat", errnum, "the FIFO of asynchronous events (" + name + ")");
    }
    number_ = number;
    context_.control()->header.asyncChannel.store(number, std::memory_order_seq_cst);
    collectLimits();  // what came before there was a FIFO
    if (!pending_.empty()) wake();
  }
  return fifo_.get();
}

void AsyncEvents::wake() {
  const ChannelEvent event;
  // A FIFO that is full wakes the reader anyhow.
  if (fifo_ && write(fifo_.get(), &event, sizeof(event)) < 0) return;
}

void AsyncEvents::collectLimits() {
  std::erase_if(queues_, [](const auto& entry) { return entry.expired(); });
  for (const auto& entry : queues_) {
    const auto queue = entry.lock();
    if (queue != nullptr && queue->takeLimitReached()) append({AsyncEventType::SrqLimitReached, queue});
  }
}

bool AsyncEvents::get(AsyncEvent* event) {
  const std::lock_guard<std::mutex> guard(mutex_);
  if (closed_) throw VerbsError("QUORATE_CLOSED", "The context was closed");
  // First empty the FIFO, then look: what comes later leaves something in it again, or finds something left in it.
  ChannelEvent wakeUps[64];
  for (int i = 0; i < kMaxReads && fifo_ && read(fifo_.get(), wakeUps, sizeof(wakeUps)) > 0; i++) {
  }
  collectLimits();
  while (!pending_.empty()) {
    const Pending next = pending_.front();
    pending_.pop_front();
    const std::shared_ptr<VerbsObject> object = next.object.lock();
    if (object == nullptr) continue;  // nobody holds what it was about
    *event = AsyncEvent();
    event->type = static_cast<int>(next.type);
    event->object = object;
    if (!pending_.empty()) wake();  // readable while there are more
    return true;
  }
  return false;
}

void AsyncEvents::append(Pending event) {
  if (pending_.size() >= kMaxPendingEvents) pending_.pop_front();
  pending_.push_back(std::move(event));
}

void AsyncEvents::post(AsyncEventType type, std::weak_ptr<VerbsObject> object) {
  const std::lock_guard<std::mutex> guard(mutex_);
  if (closed_ || object.expired()) return;
  append({type, std::move(object)});
  wake();
}

void AsyncEvents::watch(const std::shared_ptr<ShmSharedReceiveQueue>& queue) {
  const std::lock_guard<std::mutex> guard(mutex_);
  std::erase_if(queues_, [](const auto& entry) { return entry.expired(); });
  queues_.push_back(queue);
}

void AsyncEvents::close() {
  const std::lock_guard<std::mutex> guard(mutex_);
  closed_ = true;
  pending_.clear();
  if (!fifo_) return;
  context_.control()->header.asyncChannel.store(0, std::memory_order_seq_cst);
  if (!context_.forked()) {
    unlinkat(context_.directory()->fd(), ShmDirectory::channelName(context_.hcaId(), number_).c_str(), 0);
  }
  fifo_.reset();
}

}  // namespace quorate::shm

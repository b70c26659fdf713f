// Close versus use, for all objects of this provider. Every call on an object runs under its lifecycle's shared lock;
// close() takes it exclusively, so that it waits for calls in progress and later ones find the object closed. An
// object with children closes in three steps: no new children, close the children, then itself; if a child or the
// device refuses, the object stays open and usable.
//
// The hot calls (post, poll) do not use this lock: they have a mutex per queue anyway, and look at `closed` under it.
#pragma once

#include <pthread.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <utility>
#include <vector>

#include "provider/ibverbs/library.h"
#include "verbs/verbs.h"

namespace quorate::ibverbs {

[[noreturn]] inline void throwClosed(const char* kind) {
  throw VerbsError("QUORATE_CLOSED", std::string("The ") + kind + " was closed; create a new one.");
}

// A mutex that spins briefly before it sleeps: its holders are short, and a sleep costs more than they take.
class AdaptiveMutex {
 public:
  AdaptiveMutex() {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&mutex_, &attributes);
    pthread_mutexattr_destroy(&attributes);
  }
  ~AdaptiveMutex() { pthread_mutex_destroy(&mutex_); }
  AdaptiveMutex(const AdaptiveMutex&) = delete;
  AdaptiveMutex& operator=(const AdaptiveMutex&) = delete;

  void lock() { pthread_mutex_lock(&mutex_); }
  void unlock() { pthread_mutex_unlock(&mutex_); }

 private:
  pthread_mutex_t mutex_;
};

class Lifecycle {
 public:
  explicit Lifecycle(const char* kind) : kind_(kind), forkGeneration_(forkGeneration()) {}

  bool closed() const { return state_.load(std::memory_order_acquire) == State::kClosed; }

  // For calls on the object: holds off its end.
  std::shared_lock<std::shared_mutex> use() {
    std::shared_lock<std::shared_mutex> lock(mutex_);
    if (state_.load(std::memory_order_relaxed) == State::kClosed) throwClosed(kind_);
    return lock;
  }

  // For calls that make a child of the object: fails from the moment that close() begins.
  std::shared_lock<std::shared_mutex> useAsParent() {
    std::shared_lock<std::shared_mutex> lock(mutex_);
    if (state_.load(std::memory_order_relaxed) != State::kOpen) throwClosed(kind_);
    return lock;
  }

  // To be called under useAsParent()'s lock, when the child is complete.
  void addChild(std::weak_ptr<VerbsObject> child) {
    std::lock_guard<std::mutex> lock(childrenMutex_);
    if (children_.size() >= pruneAt_) {
      std::erase_if(children_, [](const std::weak_ptr<VerbsObject>& one) { return one.expired(); });
      pruneAt_ = children_.size() * 2 + 16;
    }
    children_.push_back(std::move(child));
  }

  void removeChild(const VerbsObject* child) {
    std::lock_guard<std::mutex> lock(childrenMutex_);
    std::erase_if(children_, [child](const std::weak_ptr<VerbsObject>& one) { return one.lock().get() == child; });
  }

  // Idempotent. `destroy` runs with no call in progress and no child alive; it throws to refuse. In a child process
  // made by fork() it does not run: the device object is the parent's.
  template <typename Destroy>
  void close(Destroy&& destroy) {
    std::lock_guard<std::mutex> closing(closeMutex_);
    {
      std::unique_lock<std::shared_mutex> lock(mutex_);
      if (state_.load(std::memory_order_relaxed) == State::kClosed) return;
      state_.store(State::kClosing, std::memory_order_relaxed);
    }
    try {
      closeChildren();
      std::unique_lock<std::shared_mutex> lock(mutex_);
      if (ownedByThisProcess()) destroy();
      state_.store(State::kClosed, std::memory_order_release);
    } catch (...) {
      std::unique_lock<std::shared_mutex> lock(mutex_);
      state_.store(State::kOpen, std::memory_order_relaxed);
      throw;
    }
  }

  bool ownedByThisProcess() const { return forkGeneration_ == forkGeneration(); }

 private:
  enum class State { kOpen, kClosing, kClosed };

  void closeChildren() {
    std::vector<std::weak_ptr<VerbsObject>> children;
    {
      std::lock_guard<std::mutex> lock(childrenMutex_);
      children = children_;
    }
    // Youngest first: what was made later may use what was made earlier. Memory windows before all others, since they
    // keep the regions and queue pairs that they are bound to in use, whatever was made first.
    for (const bool windows : {true, false}) {
      for (auto child = children.rbegin(); child != children.rend(); ++child) {
        const std::shared_ptr<VerbsObject> object = child->lock();
        if (object != nullptr && (dynamic_cast<MemoryWindow*>(object.get()) != nullptr) == windows) object->close();
      }
    }
    std::lock_guard<std::mutex> lock(childrenMutex_);
    children_.clear();
  }

  const char* const kind_;
  const unsigned forkGeneration_;
  std::shared_mutex mutex_;
  std::mutex closeMutex_;
  std::atomic<State> state_{State::kOpen};
  std::mutex childrenMutex_;
  std::vector<std::weak_ptr<VerbsObject>> children_;
  size_t pruneAt_ = 16;
};

// Called by destructors: closes, and where the device refuses, says so on standard error (a destructor cannot throw)
// and keeps `stillInUse` alive for ever, because the device may go on using it.
void closeInDestructor(VerbsObject* object, std::vector<std::shared_ptr<VerbsObject>> stillInUse);

}  // namespace quorate::ibverbs

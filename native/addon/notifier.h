// Wakes the event loop of the thread that made it, from any thread of the process: uv_async_send() behind a guard that
// makes it safe against the owner closing the handle, or ending, at the same moment.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "addon/environment.h"

namespace quorate::addon {

class NotifierHandle;

class Notifier : public VerbsObject {
 public:
  // In the owner thread. The callback runs in its event loop until the notifier is closed or the thread ends.
  static std::shared_ptr<Notifier> open(Environment& environment, Napi::Function callback);

  const char* kind() const override { return "Notifier"; }
  // Any thread. From another thread than the owner's, the callback may still run once if it is running now.
  void close() override;
  bool closed() const override { return (users_.load(std::memory_order_acquire) & kClosed) != 0; }

  // False if closed. Coalesced with earlier calls whose callback has not run yet.
  bool notify();
  // Owner thread only, else QUORATE_INVALID_ARGUMENT.
  void setRef(bool hold);

 private:
  friend class NotifierHandle;
  static constexpr uint32_t kClosed = 1u << 31;
  // Counts the calling thread as a user of the handle; false if closed.
  bool enter();
  void leave() { users_.fetch_sub(1, std::memory_order_release); }
  // Sets kClosed and waits until no thread uses the handle. False if it was closed before.
  bool shut();

  const std::thread::id owner_ = std::this_thread::get_id();
  NotifierHandle* handle_ = nullptr;  // valid for users that entered
  std::atomic<uint32_t> users_{0};    // threads inside notify(), and kClosed
};

}  // namespace quorate::addon

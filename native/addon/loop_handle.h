// A libuv handle in the event loop of one environment, closed in order: uv_close() is asynchronous, so the handle's
// memory belongs to libuv until the close callback; when an environment ends (worker.terminate(), process end) Node.js
// waits for that callback because an asynchronous cleanup hook is registered for as long as the handle lives.
#pragma once

#include <uv.h>

#include "addon/environment.h"

namespace quorate::addon {

class LoopHandle {
 public:
  LoopHandle(const LoopHandle&) = delete;
  LoopHandle& operator=(const LoopHandle&) = delete;

  // Owner thread only. Idempotent. The object deletes itself some time later.
  void startClose();
  bool closing() const { return closing_; }
  void ref();
  void unref();

 protected:
  explicit LoopHandle(Environment& environment);
  virtual ~LoopHandle() = default;
  // To be called once the uv handle is initialised; throws VerbsError. Until then the object may simply be deleted.
  void activate();
  // Calls the function in the event loop, like any other callback of the loop: what it throws becomes an uncaught
  // exception. Does nothing if JavaScript can no longer run.
  void call(const Napi::FunctionReference& function, const std::vector<napi_value>& arguments);
  static uv_loop_t* loopOf(Environment& environment);

  virtual uv_handle_t* handle() = 0;
  // Owner thread, at the beginning of closing: drop references into JavaScript.
  virtual void releaseJavaScript() = 0;

  const std::shared_ptr<Environment> environment_;

 private:
  napi_async_cleanup_hook_handle hook_ = nullptr;
  napi_async_context asyncContext_ = nullptr;
  bool closing_ = false;
};

}  // namespace quorate::addon

// See loop_handle.h.
#include "addon/loop_handle.h"

namespace quorate::addon {

LoopHandle::LoopHandle(Environment& environment) : environment_(environment.shared_from_this()) {}

uv_loop_t* LoopHandle::loopOf(Environment& environment) {
  uv_loop_t* loop = nullptr;
  if (napi_get_uv_event_loop(environment.env(), &loop) != napi_ok || loop == nullptr) {
    throw VerbsError("QUORATE_UNSUPPORTED", "this JavaScript runtime has no libuv event loop", 0,
                     "napi_get_uv_event_loop");
  }
  return loop;
}

void LoopHandle::activate() {
  napi_env env = environment_->env();
  handle()->data = this;
  uv_unref(handle());
  napi_value name = nullptr;
  napi_status status = napi_create_string_utf8(env, "quorate", NAPI_AUTO_LENGTH, &name);
  if (status == napi_ok) status = napi_async_init(env, nullptr, name, &asyncContext_);
  if (status == napi_ok) {
    status = napi_add_async_cleanup_hook(
        env, [](napi_async_cleanup_hook_handle, void* self) { static_cast<LoopHandle*>(self)->startClose(); }, this,
        &hook_);
  }
  if (status != napi_ok) {
    startClose();
    throw VerbsError("QUORATE_SYSTEM", "cannot join the event loop: this environment is being torn down", 0,
                     "napi_add_async_cleanup_hook");
  }
}

void LoopHandle::startClose() {
  if (closing_) return;
  closing_ = true;
  releaseJavaScript();
  if (asyncContext_ != nullptr) {
    napi_async_destroy(environment_->env(), asyncContext_);
    asyncContext_ = nullptr;
  }
  uv_close(handle(), [](uv_handle_t* closed) {
    auto* self = static_cast<LoopHandle*>(closed->data);
    if (self->hook_ != nullptr) napi_remove_async_cleanup_hook(self->hook_);
    delete self;
  });
}

void LoopHandle::ref() {
  if (!closing_) uv_ref(handle());
}

void LoopHandle::unref() {
  if (!closing_) uv_unref(handle());
}

void LoopHandle::call(const Napi::FunctionReference& function, const std::vector<napi_value>& arguments) {
  napi_env env = environment_->env();
  napi_value callee = nullptr, result = nullptr;
  if (napi_get_reference_value(env, function, &callee) != napi_ok || callee == nullptr) return;
  napi_value global = nullptr;
  if (napi_get_global(env, &global) != napi_ok) return;
  const napi_status status =
      napi_make_callback(env, asyncContext_, global, callee, arguments.size(), arguments.data(), &result);
  if (status == napi_ok) return;
  bool pending = false;
  if (napi_is_exception_pending(env, &pending) != napi_ok || !pending) return;  // the environment is terminating
  napi_value exception = nullptr;
  if (napi_get_and_clear_last_exception(env, &exception) == napi_ok) napi_fatal_exception(env, exception);
}

}  // namespace quorate::addon

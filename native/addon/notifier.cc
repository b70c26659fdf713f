// See notifier.h.
#include "addon/notifier.h"

#include <string>
#include <utility>

#include "addon/arguments.h"
#include "addon/cpu_pause.h"
#include "addon/loop_handle.h"

namespace quorate::addon {

// The owner's side: the uv_async handle and the callback. It keeps the notifier alive until it is closed.
class NotifierHandle : public LoopHandle {
 public:
  NotifierHandle(Environment& environment, Napi::Function callback, std::shared_ptr<Notifier> notifier)
      : LoopHandle(environment), callback_(Napi::Persistent(callback)), notifier_(std::move(notifier)) {}

  void open() {
    const int result = uv_async_init(loopOf(*environment_), &async_, onAsync);
    if (result != 0) {
      throw VerbsError("QUORATE_SYSTEM", std::string("cannot make a notifier: ") + uv_strerror(result), -result,
                       "uv_async_init");
    }
    opened_ = true;
    activate();
  }
  bool opened() const { return opened_; }
  void discard() { delete this; }  // only if open() failed before the handle was initialised

  void send() { uv_async_send(&async_); }

 private:
  ~NotifierHandle() override = default;
  uv_handle_t* handle() override { return reinterpret_cast<uv_handle_t*>(&async_); }

  void releaseJavaScript() override {
    notifier_->shut();  // from here on no other thread touches async_
    callback_.Reset();
  }

  static void onAsync(uv_async_t* async) {
    auto* self = static_cast<NotifierHandle*>(async->data);
    if (self->notifier_->closed()) {  // another thread closed it and left the rest to us
      self->startClose();
      return;
    }
    Napi::HandleScope scope(self->environment_->env());
    const std::shared_ptr<Notifier> keepAlive = self->notifier_;
    self->call(self->callback_, {});
  }

  uv_async_t async_{};
  Napi::FunctionReference callback_;
  const std::shared_ptr<Notifier> notifier_;
  bool opened_ = false;
};

std::shared_ptr<Notifier> Notifier::open(Environment& environment, Napi::Function callback) {
  auto notifier = std::make_shared<Notifier>();
  auto* handle = new NotifierHandle(environment, callback, notifier);
  notifier->handle_ = handle;
  try {
    handle->open();
  } catch (...) {
    if (!handle->opened()) handle->discard();
    throw;
  }
  return notifier;
}

bool Notifier::enter() {
  // A failed entry counts for a moment too; shut() waits for it just the same.
  if ((users_.fetch_add(1, std::memory_order_acquire) & kClosed) == 0) return true;
  leave();
  return false;
}

bool Notifier::shut() {
  const bool first = (users_.fetch_or(kClosed, std::memory_order_acq_rel) & kClosed) == 0;
  while ((users_.load(std::memory_order_acquire) & ~kClosed) != 0) {
    cpuPause();
    std::this_thread::yield();  // the other thread may have been preempted inside notify()
  }
  return first;
}

bool Notifier::notify() {
  if (!enter()) return false;
  handle_->send();
  leave();
  return true;
}

void Notifier::close() {
  if (std::this_thread::get_id() == owner_) {
    if (!closed()) handle_->startClose();
    return;
  }
  if (!enter()) return;
  // While this thread is inside, the owner cannot free the handle; it sees kClosed when the event below arrives.
  users_.fetch_or(kClosed, std::memory_order_acq_rel);
  handle_->send();
  leave();
}

void Notifier::setRef(bool hold) {
  if (std::this_thread::get_id() != owner_) {
    throw VerbsError("QUORATE_INVALID_ARGUMENT", "ref() and unref() belong to the thread that made the notifier");
  }
  hold ? handle_->ref() : handle_->unref();
}

namespace {

Napi::Value notify(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return Napi::Boolean::New(environment.env(), as<Notifier>(self)->notify());
}

template <bool hold>
Napi::Value setRef(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  as<Notifier>(self)->setRef(hold);
  return environment.env().Undefined();
}

}  // namespace

std::shared_ptr<VerbsObject> constructNotifier(Environment& environment, const Napi::CallbackInfo& info) {
  if (!info[0].IsFunction()) throwInvalidArgument("callback must be a function");
  return Notifier::open(environment, info[0].As<Napi::Function>());
}

std::vector<napi_property_descriptor> notifierMembers(Environment* environment) {
  constexpr Kind k = Kind::Notifier;
  return {
      method<k, notify, true>(environment, "notify"),
      method<k, setRef<true>>(environment, "ref"),
      method<k, setRef<false>>(environment, "unref"),
  };
}

}  // namespace quorate::addon

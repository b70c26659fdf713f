// See event_watcher.h.
#include "addon/event_watcher.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "addon/arguments.h"
#include "addon/loop_handle.h"

namespace quorate::addon {

namespace {

// Events taken in one turn of the event loop; the rest waits for the next turn, so that other handles get theirs.
constexpr int kMaxEventsPerTurn = 256;

}  // namespace

// Watches the descriptor with uv_poll. It is a duplicate: the object may be closed by another thread, and its number
// taken by another file, while libuv still watches.
class EventWatcher : public LoopHandle {
 public:
  static EventWatcher* open(Environment& environment, std::shared_ptr<VerbsObject> source, int descriptor,
                            TakeEvent take) {
    const int fd = ::fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
    const std::string what = std::string("cannot watch the events of the ") + source->kind() + ": ";
    if (fd < 0) {
      const int errnum = errno;
      throw VerbsError("QUORATE_SYSTEM", what + std::generic_category().message(errnum), errnum,
                       "fcntl(F_DUPFD_CLOEXEC)");
    }
    auto* watcher = new EventWatcher(environment, std::move(source), fd, std::move(take));
    int result = 0;
    try {
      result = uv_poll_init(loopOf(environment), &watcher->poll_, fd);
    } catch (...) {
      delete watcher;
      throw;
    }
    if (result != 0) {
      delete watcher;
      throw VerbsError("QUORATE_SYSTEM", what + uv_strerror(result), -result, "uv_poll_init");
    }
    watcher->activate();
    environment.watchers[watcher->source_.get()] = watcher;
    result = uv_poll_start(&watcher->poll_, UV_READABLE, onReadable);
    if (result != 0) {
      watcher->startClose();
      throw VerbsError("QUORATE_SYSTEM", what + uv_strerror(result), -result, "uv_poll_start");
    }
    return watcher;
  }

  void setCallback(Napi::Function callback) { callback_ = Napi::Persistent(callback); }

 private:
  EventWatcher(Environment& environment, std::shared_ptr<VerbsObject> source, int fd, TakeEvent take)
      : LoopHandle(environment), source_(std::move(source)), fd_(fd), take_(std::move(take)) {}
  ~EventWatcher() override { ::close(fd_); }

  uv_handle_t* handle() override { return reinterpret_cast<uv_handle_t*>(&poll_); }

  void releaseJavaScript() override {
    callback_.Reset();
    const auto found = environment_->watchers.find(source_.get());
    if (found != environment_->watchers.end() && found->second == this) environment_->watchers.erase(found);
  }

  static void onReadable(uv_poll_t* poll, int status, int) {
    auto* self = static_cast<EventWatcher*>(poll->data);
    Napi::HandleScope scope(self->environment_->env());
    self->deliver(status);
  }

  void deliver(int status) {
    try {
      if (status < 0 && source_->closed()) {
        startClose();  // closed with a parent, in another thread: a device then reports its descriptor as bad
        return;
      }
      if (status < 0) {
        throw VerbsError(
            "QUORATE_SYSTEM",
            std::string("watching the events of the ") + source_->kind() + " failed: " + uv_strerror(status), -status,
            "uv_poll");
      }
      for (int i = 0; i < kMaxEventsPerTurn && !closing(); i++) {
        Napi::HandleScope scope(environment_->env());
        if (!take_(*environment_, [this](napi_value event) { call(callback_, {event}); })) return;
      }
    } catch (const VerbsError& error) {
      // An object that another thread closed is simply no longer watched. Anything else must be seen, once.
      const std::shared_ptr<Environment> environment = environment_;
      startClose();
      if (error.code == "QUORATE_CLOSED") return;
      try {
        napi_fatal_exception(environment->env(), environment->makeError(error));
      } catch (const Napi::Error&) {
        // The environment is terminating.
      }
    } catch (const Napi::Error&) {
      startClose();  // the environment is terminating: no JavaScript object can be made any more
    }
  }

  uv_poll_t poll_{};
  const std::shared_ptr<VerbsObject> source_;
  const int fd_;
  const TakeEvent take_;
  Napi::FunctionReference callback_;
};

void stopWatchingClosed(Environment& environment) {
  std::vector<EventWatcher*> ended;
  for (const auto& [source, watcher] : environment.watchers) {
    if (source->closed()) ended.push_back(watcher);
  }
  for (EventWatcher* watcher : ended) watcher->startClose();
}

void watchEvents(Environment& environment, const std::shared_ptr<VerbsObject>& source, const Napi::Value& callback,
                 const std::function<int()>& descriptor, const TakeEvent& take) {
  const auto found = environment.watchers.find(source.get());
  if (callback.IsNull()) {
    if (found != environment.watchers.end()) found->second->startClose();
    return;
  }
  if (!callback.IsFunction()) throwInvalidArgument("callback must be a function or null");
  EventWatcher* watcher =
      found != environment.watchers.end() ? found->second : EventWatcher::open(environment, source, descriptor(), take);
  watcher->setCallback(callback.As<Napi::Function>());
}

void setWatcherRef(Environment& environment, const VerbsObject* source, bool hold) {
  const auto found = environment.watchers.find(source);
  if (found == environment.watchers.end()) {
    throwInvalidArgument(
        "ref() and unref() need an object that is watched: call onEvent() (of a context onAsyncEvent()) first");
  }
  hold ? found->second->ref() : found->second->unref();
}

}  // namespace quorate::addon

// JavaScript classes CompletionChannel and CompletionQueue, and the watcher that joins a channel to the event loop.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "addon/arguments.h"
#include "addon/environment.h"
#include "addon/loop_handle.h"

namespace quorate::addon {

namespace {

constexpr uint64_t kMaxPoll = 65536;
// Events taken in one turn of the event loop; the rest waits for the next turn, so that other handles get theirs.
constexpr int kMaxEventsPerTurn = 256;

Napi::Value number(Environment& environment, double value) {
  return Napi::Number::New(environment.env(), value);
}

}  // namespace

// Watches a channel's descriptor with uv_poll. The descriptor is a duplicate: the channel may be closed by another
// thread, and its number taken by another file, while libuv still watches.
class ChannelWatcher : public LoopHandle {
 public:
  static ChannelWatcher* open(Environment& environment, std::shared_ptr<CompletionChannel> channel) {
    const int fd = ::fcntl(channel->fd(), F_DUPFD_CLOEXEC, 0);
    if (fd < 0) {
      const int errnum = errno;
      throw VerbsError("QUORATE_SYSTEM",
                       "cannot watch the completion channel: " + std::generic_category().message(errnum), errnum,
                       "fcntl(F_DUPFD_CLOEXEC)");
    }
    auto* watcher = new ChannelWatcher(environment, std::move(channel), fd);
    int result = 0;
    try {
      result = uv_poll_init(loopOf(environment), &watcher->poll_, fd);
    } catch (...) {
      delete watcher;
      throw;
    }
    if (result != 0) {
      delete watcher;
      throw VerbsError("QUORATE_SYSTEM", std::string("cannot watch the completion channel: ") + uv_strerror(result),
                       -result, "uv_poll_init");
    }
    watcher->activate();
    environment.watchers[watcher->channel_.get()] = watcher;
    result = uv_poll_start(&watcher->poll_, UV_READABLE, onReadable);
    if (result != 0) {
      watcher->startClose();
      throw VerbsError("QUORATE_SYSTEM", std::string("cannot watch the completion channel: ") + uv_strerror(result),
                       -result, "uv_poll_start");
    }
    return watcher;
  }

  void setCallback(Napi::Function callback) { callback_ = Napi::Persistent(callback); }

 private:
  ChannelWatcher(Environment& environment, std::shared_ptr<CompletionChannel> channel, int fd)
      : LoopHandle(environment), channel_(std::move(channel)), fd_(fd) {}
  ~ChannelWatcher() override { ::close(fd_); }

  uv_handle_t* handle() override { return reinterpret_cast<uv_handle_t*>(&poll_); }

  void releaseJavaScript() override {
    callback_.Reset();
    const auto found = environment_->watchers.find(channel_.get());
    if (found != environment_->watchers.end() && found->second == this) environment_->watchers.erase(found);
  }

  static void onReadable(uv_poll_t* poll, int status, int) {
    auto* self = static_cast<ChannelWatcher*>(poll->data);
    Napi::HandleScope scope(self->environment_->env());
    self->deliver(status);
  }

  void deliver(int status) {
    try {
      if (status < 0) {
        throw VerbsError("QUORATE_SYSTEM",
                         std::string("watching the completion channel failed: ") + uv_strerror(status), -status,
                         "uv_poll");
      }
      for (int i = 0; i < kMaxEventsPerTurn && !closing(); i++) {
        std::shared_ptr<CompletionQueue> completionQueue = channel_->getEvent();
        if (completionQueue == nullptr) return;
        if (completionQueue->closed()) continue;
        Napi::HandleScope scope(environment_->env());
        call(callback_, {environment_->wrap(std::move(completionQueue))});
      }
    } catch (const VerbsError& error) {
      // A channel that another thread closed is simply no longer watched. Anything else must be seen, once.
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
  const std::shared_ptr<CompletionChannel> channel_;
  const int fd_;
  Napi::FunctionReference callback_;
};

void stopWatching(Environment& environment, const CompletionChannel* channel) {
  const auto found = environment.watchers.find(channel);
  if (found != environment.watchers.end()) found->second->startClose();
}

namespace {

Napi::Value getFd(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment, as<CompletionChannel>(self)->fd());
}

Napi::Value getEvent(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  std::shared_ptr<CompletionQueue> completionQueue = as<CompletionChannel>(self)->getEvent();
  if (completionQueue == nullptr) return environment.env().Null();
  return environment.wrap(std::move(completionQueue));
}

Napi::Value onEvent(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const std::shared_ptr<CompletionChannel> channel = as<CompletionChannel>(self);
  if (info[0].IsNull()) {
    stopWatching(environment, channel.get());
    return environment.env().Undefined();
  }
  if (!info[0].IsFunction()) throwInvalidArgument("callback must be a function or null");
  const auto found = environment.watchers.find(channel.get());
  ChannelWatcher* watcher =
      found != environment.watchers.end() ? found->second : ChannelWatcher::open(environment, channel);
  watcher->setCallback(info[0].As<Napi::Function>());
  return environment.env().Undefined();
}

template <bool hold>
Napi::Value setRef(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  const auto found = environment.watchers.find(as<CompletionChannel>(self).get());
  if (found == environment.watchers.end()) {
    throwInvalidArgument("ref() and unref() need a channel that is watched: call onEvent() first");
  }
  hold ? found->second->ref() : found->second->unref();
  return environment.env().Undefined();
}

Napi::Value getDepth(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment, as<CompletionQueue>(self)->depth());
}

Napi::Value poll(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const int max = static_cast<int>(readInteger(info[0], "max", 1, kMaxPoll));
  const std::shared_ptr<CompletionQueue> completionQueue = as<CompletionQueue>(self);
  std::vector<WorkCompletion> completions(static_cast<size_t>(std::min(max, std::max(1, completionQueue->depth()))));
  const int count = completionQueue->poll(completions.data(), static_cast<int>(completions.size()));
  Napi::Array array = Napi::Array::New(environment.env(), static_cast<size_t>(count));
  for (int i = 0; i < count; i++) {
    Napi::HandleScope scope(environment.env());
    const WorkCompletion& completion = completions[static_cast<size_t>(i)];
    Napi::Object object = Napi::Object::New(environment.env());
    object.Set("wrId", number(environment, static_cast<double>(completion.wrId)));
    object.Set("status", number(environment, completion.status));
    object.Set("opcode", number(environment, completion.opcode));
    object.Set("byteLen", number(environment, completion.byteLen));
    object.Set("qpNum", number(environment, completion.qpNum));
    object.Set("immData", number(environment, completion.immData));
    object.Set("vendorErr", number(environment, completion.vendorErr));
    object.Set("wcFlags", number(environment, completion.wcFlags));
    array.Set(static_cast<uint32_t>(i), object);
  }
  return array;
}

Napi::Value requestNotify(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  as<CompletionQueue>(self)->requestNotify(readBoolean(info[0], "solicitedOnly"));
  return environment.env().Undefined();
}

}  // namespace

std::vector<napi_property_descriptor> completionChannelMembers(Environment* environment) {
  constexpr Kind k = Kind::CompletionChannel;
  return {
      getter<k, getFd>(environment, "fd"),
      method<k, getEvent>(environment, "getEvent"),
      method<k, onEvent>(environment, "onEvent"),
      method<k, setRef<true>>(environment, "ref"),
      method<k, setRef<false>>(environment, "unref"),
  };
}

std::vector<napi_property_descriptor> completionQueueMembers(Environment* environment) {
  constexpr Kind k = Kind::CompletionQueue;
  return {
      getter<k, getDepth>(environment, "depth"),
      method<k, poll>(environment, "poll"),
      method<k, requestNotify>(environment, "requestNotify"),
  };
}

}  // namespace quorate::addon

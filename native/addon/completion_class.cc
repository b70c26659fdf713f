// JavaScript classes CompletionChannel and CompletionQueue.
#include <algorithm>
#include <utility>
#include <vector>

#include "addon/arguments.h"
#include "addon/environment.h"
#include "addon/event_watcher.h"

namespace quorate::addon {

namespace {

constexpr uint64_t kMaxPoll = 65536;

Napi::Value getChannelFd(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment.env(), as<CompletionChannel>(self)->fd());
}

Napi::Value getEvent(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  std::shared_ptr<CompletionQueue> completionQueue = as<CompletionChannel>(self)->getEvent();
  if (completionQueue == nullptr) return environment.env().Null();
  return environment.wrap(std::move(completionQueue));
}

Napi::Value onChannelEvent(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const std::shared_ptr<CompletionChannel> channel = as<CompletionChannel>(self);
  watchEvents(
      environment, channel, info[0], [channel] { return channel->fd(); },
      [channel](Environment& in, const std::function<void(napi_value)>& deliver) {
        std::shared_ptr<CompletionQueue> completionQueue = channel->getEvent();
        if (completionQueue == nullptr) return false;
        if (!completionQueue->closed()) deliver(in.wrap(std::move(completionQueue)));
        return true;
      });
  return environment.env().Undefined();
}

Napi::Value getDepth(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment.env(), as<CompletionQueue>(self)->depth());
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
    object.Set("wrId", number(environment.env(), static_cast<double>(completion.wrId)));
    object.Set("status", number(environment.env(), completion.status));
    object.Set("opcode", number(environment.env(), completion.opcode));
    object.Set("byteLen", number(environment.env(), completion.byteLen));
    object.Set("qpNum", number(environment.env(), completion.qpNum));
    const bool invalidated = (completion.wcFlags & kWcWithInv) != 0;
    object.Set("immData", number(environment.env(), invalidated ? 0 : completion.immData));
    object.Set("invalidatedRkey", number(environment.env(), invalidated ? completion.immData : 0));
    object.Set("vendorErr", number(environment.env(), completion.vendorErr));
    object.Set("wcFlags", number(environment.env(), completion.wcFlags));
    object.Set("srcQpNum", number(environment.env(), completion.srcQpNum));
    object.Set("pkeyIndex", number(environment.env(), completion.pkeyIndex));
    object.Set("slid", number(environment.env(), completion.slid));
    object.Set("sl", number(environment.env(), completion.sl));
    object.Set("dlidPathBits", number(environment.env(), completion.dlidPathBits));
    if ((completion.wcFlags & kWcWithChecksum) != 0) {
      object.Set("checksum", number(environment.env(), static_cast<double>(completion.checksum)));
    }
    if (completionQueue->timestamps() != Timestamps::None) {
      object.Set("timestamp", Napi::BigInt::New(environment.env(), completion.timestamp));
    }
    array.Set(static_cast<uint32_t>(i), object);
  }
  return array;
}

Napi::Value requestNotify(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  as<CompletionQueue>(self)->requestNotify(readBoolean(info[0], "solicitedOnly"));
  return environment.env().Undefined();
}

Napi::Value resize(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  as<CompletionQueue>(self)->resize(static_cast<int>(readInteger(info[0], "depth", 1, 0x7fffffff)));
  return environment.env().Undefined();
}

}  // namespace

std::vector<napi_property_descriptor> completionChannelMembers(Environment* environment) {
  constexpr Kind k = Kind::CompletionChannel;
  return {
      getter<k, getChannelFd>(environment, "fd"),
      method<k, getEvent>(environment, "getEvent"),
      method<k, onChannelEvent>(environment, "onEvent"),
      method<k, setWatcherRef<true>>(environment, "ref"),
      method<k, setWatcherRef<false>>(environment, "unref"),
  };
}

std::vector<napi_property_descriptor> completionQueueMembers(Environment* environment) {
  constexpr Kind k = Kind::CompletionQueue;
  return {
      getter<k, getDepth>(environment, "depth"),
      method<k, poll>(environment, "poll"),
      method<k, resize>(environment, "resize"),
      method<k, requestNotify>(environment, "requestNotify"),
  };
}

}  // namespace quorate::addon

// JavaScript classes Waiter and PeerProcess.
#include "addon/arguments.h"
#include "addon/clock.h"
#include "addon/environment.h"
#include "addon/waiter.h"

namespace quorate::addon {

namespace {

Napi::Value wake(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  as<Waiter>(self)->wake();
  return environment.env().Undefined();
}

Napi::Value watchQueue(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  std::shared_ptr<CompletionQueue> queue;
  std::shared_ptr<CompletionChannel> channel;
  if (!isNothing(info[0])) {
    queue = readHandleAs<CompletionQueue>(info[0], "completionQueue", Kind::CompletionQueue);
    if (!isNothing(info[1])) {
      channel = readHandleAs<CompletionChannel>(info[1], "channel", Kind::CompletionChannel);
    }
  }
  as<Waiter>(self)->watchQueue(std::move(queue), std::move(channel));
  return environment.env().Undefined();
}

Napi::Value watchPeer(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const uint64_t slot = readInteger(info[0], "slot", 0, Waiter::kMaxPeers - 1);
  std::shared_ptr<PeerProcess> peer;
  if (!isNothing(info[1])) peer = readHandleAs<PeerProcess>(info[1], "peer", Kind::PeerProcess);
  as<Waiter>(self)->watchPeer(slot, std::move(peer));
  return environment.env().Undefined();
}

Napi::Value wait(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const uint64_t timeoutNs = readInteger(info[0], "timeoutNs", 0, kMaxWaitNs);
  return number(environment.env(), as<Waiter>(self)->wait(timeoutNs));
}

Napi::Value getAlive(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return Napi::Boolean::New(environment.env(), as<PeerProcess>(self)->alive());
}

Napi::Value getState(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment.env(), static_cast<int>(as<PeerProcess>(self)->state()));
}

}  // namespace

std::shared_ptr<VerbsObject> constructWaiter(Environment&, const Napi::CallbackInfo&) {
  return std::make_shared<Waiter>();
}

std::vector<napi_property_descriptor> waiterMembers(Environment* environment) {
  constexpr Kind k = Kind::Waiter;
  return {
      method<k, wake, true>(environment, "wake"),
      method<k, watchQueue>(environment, "watchQueue"),
      method<k, watchPeer>(environment, "watchPeer"),
      method<k, wait>(environment, "wait"),
  };
}

std::vector<napi_property_descriptor> peerProcessMembers(Environment* environment) {
  constexpr Kind k = Kind::PeerProcess;
  return {
      getter<k, getAlive>(environment, "alive"),
      getter<k, getState>(environment, "state"),
  };
}

}  // namespace quorate::addon

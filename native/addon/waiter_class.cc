// JavaScript classes Waiter and PeerProcess. `wait`, which a thread calls in each of its turns, is a function of each
// waiter's own.
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

struct WaiterHolder {
  const std::shared_ptr<Environment> environment;
  const std::shared_ptr<Waiter> waiter;
};

napi_value waitCallback(napi_env env, napi_callback_info info) noexcept {
  size_t count = 1;
  napi_value timeout = nullptr;
  void* data = nullptr;
  if (napi_get_cb_info(env, info, &count, &timeout, nullptr, &data) != napi_ok) return nullptr;
  auto* holder = static_cast<WaiterHolder*>(data);
  return guarded(env, holder->environment.get(), [&]() -> napi_value {
    if (holder->waiter->closed()) throwClosed("Waiter");
    const uint64_t timeoutNs = readInteger(Napi::Value(env, timeout), "timeoutNs", 0, kMaxWaitNs);
    return number(env, holder->waiter->wait(timeoutNs));
  });
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

void decorateWaiter(Environment& environment, Napi::Object self, const std::shared_ptr<VerbsObject>& object) {
  auto holder = std::make_unique<WaiterHolder>(
      WaiterHolder{environment.shared_from_this(), std::static_pointer_cast<Waiter>(object)});
  self.DefineProperty(Napi::PropertyDescriptor::Value(
      "wait", ownFunction(environment.env(), "wait", waitCallback, std::move(holder)), napi_enumerable));
}

std::vector<napi_property_descriptor> waiterMembers(Environment* environment) {
  constexpr Kind k = Kind::Waiter;
  return {
      method<k, wake, true>(environment, "wake"),
      method<k, watchQueue>(environment, "watchQueue"),
      method<k, watchPeer>(environment, "watchPeer"),
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

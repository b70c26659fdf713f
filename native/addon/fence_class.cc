// JavaScript class Fence.
#include "addon/arguments.h"
#include "addon/environment.h"
#include "addon/fence.h"

namespace quorate::addon {

namespace {

Napi::Value getEpoch(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment.env(), static_cast<double>(as<Fence>(self)->epoch()));
}

Napi::Value raise(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const uint64_t epoch = readInteger(info[0], "epoch", 0, kMaxSafeInteger);
  return number(environment.env(), static_cast<double>(as<Fence>(self)->raise(epoch)));
}

}  // namespace

std::shared_ptr<VerbsObject> constructFence(Environment&, const Napi::CallbackInfo&) {
  return std::make_shared<Fence>();
}

std::vector<napi_property_descriptor> fenceMembers(Environment* environment) {
  constexpr Kind k = Kind::Fence;
  return {
      getter<k, getEpoch>(environment, "epoch"),
      method<k, raise>(environment, "raise"),
  };
}

}  // namespace quorate::addon

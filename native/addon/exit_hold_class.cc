// JavaScript class ExitHold.
#include "addon/arguments.h"
#include "addon/environment.h"
#include "provider/exit_hold.h"

namespace quorate::addon {

namespace {

constexpr uint64_t kMaxHoldNs = 1'000'000'000;

Napi::Value getKeeperId(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment.env(), as<ExitHold>(self)->keeper());
}

}  // namespace

std::shared_ptr<VerbsObject> constructExitHold(Environment&, const Napi::CallbackInfo& info) {
  return ExitHold::open(readInteger(info[0], "holdNs", 1, kMaxHoldNs));
}

std::vector<napi_property_descriptor> exitHoldMembers(Environment* environment) {
  return {getter<Kind::ExitHold, getKeeperId>(environment, "keeperId")};
}

}  // namespace quorate::addon

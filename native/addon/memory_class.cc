// JavaScript classes Memory and MemoryRegion.
#include "addon/environment.h"

namespace quorate::addon {

namespace {

Napi::Value number(Environment& environment, double value) {
  return Napi::Number::New(environment.env(), value);
}

Napi::Value getMemoryAddress(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment, static_cast<double>(reinterpret_cast<uintptr_t>(as<Memory>(self)->data())));
}
Napi::Value getMemoryLength(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment, static_cast<double>(as<Memory>(self)->length()));
}
Napi::Value getBuffer(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return environment.bufferOf(as<Memory>(self));
}
Napi::Value getLkey(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment, as<MemoryRegion>(self)->lkey());
}
Napi::Value getRkey(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment, as<MemoryRegion>(self)->rkey());
}
Napi::Value getRegionAddress(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment, static_cast<double>(as<MemoryRegion>(self)->address()));
}
Napi::Value getRegionLength(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment, static_cast<double>(as<MemoryRegion>(self)->length()));
}
Napi::Value getAccess(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment, as<MemoryRegion>(self)->access());
}

}  // namespace

std::vector<napi_property_descriptor> memoryMembers(Environment* environment) {
  constexpr Kind k = Kind::Memory;
  return {
      getter<k, getMemoryAddress>(environment, "address"),
      getter<k, getMemoryLength>(environment, "length"),
      getter<k, getBuffer>(environment, "buffer"),
  };
}

std::vector<napi_property_descriptor> memoryRegionMembers(Environment* environment) {
  constexpr Kind k = Kind::MemoryRegion;
  return {
      getter<k, getLkey>(environment, "lkey"),
      getter<k, getRkey>(environment, "rkey"),
      getter<k, getRegionAddress>(environment, "address"),
      getter<k, getRegionLength>(environment, "length"),
      getter<k, getAccess>(environment, "access"),
  };
}

}  // namespace quorate::addon

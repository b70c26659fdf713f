// JavaScript classes Memory, MemoryRegion and MemoryWindow.
#include "addon/arguments.h"
#include "addon/environment.h"

namespace quorate::addon {

namespace {

Napi::Value getMemoryAddress(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment.env(), static_cast<double>(reinterpret_cast<uintptr_t>(as<Memory>(self)->data())));
}
Napi::Value getMemoryLength(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment.env(), static_cast<double>(as<Memory>(self)->length()));
}
Napi::Value getBuffer(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return environment.bufferOf(as<Memory>(self));
}
Napi::Value getLkey(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment.env(), as<MemoryRegion>(self)->lkey());
}
Napi::Value getRkey(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment.env(), as<MemoryRegion>(self)->rkey());
}
Napi::Value getRegionAddress(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment.env(), static_cast<double>(as<MemoryRegion>(self)->address()));
}
Napi::Value getRegionLength(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment.env(), static_cast<double>(as<MemoryRegion>(self)->length()));
}
Napi::Value getAccess(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment.env(), as<MemoryRegion>(self)->access());
}

// ({ protectionDomain?, memory?, offset?, length?, access? })
Napi::Value reregister(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const Napi::Object object = readObject(info[0], "changes");
  refuseUnknownMembers(object, "changes", {"protectionDomain", "memory", "offset", "length", "access"});
  MemoryRegion::Changes changes;
  const Napi::Value domain = object.Get("protectionDomain");
  const Napi::Value memory = object.Get("memory");
  const Napi::Value access = object.Get("access");
  if (!isAbsent(domain)) {
    changes.domain = readHandleAs<ProtectionDomain>(domain, "protectionDomain", Kind::ProtectionDomain);
  }
  if (!isAbsent(memory)) {
    changes.memory = readHandleAs<Memory>(memory, "memory", Kind::Memory);
    changes.offset = readInteger(object.Get("offset"), "offset", 0, kMaxSafeInteger);
    changes.length = readInteger(object.Get("length"), "length", 1, kMaxSafeInteger);
    if (changes.offset > changes.memory->length() || changes.length > changes.memory->length() - changes.offset) {
      throwOutOfRange("offset " + std::to_string(changes.offset) + " and length " + std::to_string(changes.length) +
                      " reach beyond the memory of " + std::to_string(changes.memory->length()) + " bytes");
    }
  } else if (!isAbsent(object.Get("offset")) || !isAbsent(object.Get("length"))) {
    throwInvalidArgument("offset and length are of no use without memory");
  }
  if (!isAbsent(access)) changes.access = static_cast<uint32_t>(readInteger(access, "access", 0, kAllAccess));
  if (changes.domain == nullptr && changes.memory == nullptr && !changes.access.has_value()) {
    throwInvalidArgument("changes must hold protectionDomain, memory or access: nothing else can change");
  }
  as<MemoryRegion>(self)->reregister(changes);
  return environment.env().Undefined();
}

Napi::Value getWindowType(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment.env(), as<MemoryWindow>(self)->type());
}
Napi::Value getWindowRkey(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment.env(), as<MemoryWindow>(self)->rkey());
}

}  // namespace

std::vector<napi_property_descriptor> memoryWindowMembers(Environment* environment) {
  constexpr Kind k = Kind::MemoryWindow;
  return {
      getter<k, getWindowType>(environment, "type"),
      getter<k, getWindowRkey>(environment, "rkey"),
  };
}

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
      method<k, reregister>(environment, "reregister"),
  };
}

}  // namespace quorate::addon

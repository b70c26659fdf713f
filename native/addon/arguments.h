// Reading of JavaScript arguments. Every reader names the argument in its error, and none lets through a value that
// the C++ type behind it cannot hold: a double that is NaN, negative, fractional or too large never becomes an integer.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>

#include "addon/environment.h"

namespace quorate::addon {

constexpr uint64_t kMaxSafeInteger = (1ull << 53) - 1;
constexpr uint64_t kMaxUint32 = 0xffffffff;

[[noreturn]] void throwInvalidArgument(const std::string& message);
[[noreturn]] void throwOutOfRange(const std::string& message);

// An integer within [min, max], both <= kMaxSafeInteger.
uint64_t readInteger(const Napi::Value& value, const std::string& name, uint64_t min, uint64_t max);
// 64 bits: a bigint, or a number that is an integer.
uint64_t readUint64(const Napi::Value& value, const std::string& name);
bool readBoolean(const Napi::Value& value, const std::string& name);
// At most maxLength bytes of UTF-8, without NUL.
std::string readString(const Napi::Value& value, const std::string& name, size_t maxLength = 4096);
Napi::Object readObject(const Napi::Value& value, const std::string& name);
// Refuses members that are not in `known`: a misspelt option must not be ignored.
void refuseUnknownMembers(const Napi::Object& object, const std::string& name,
                          std::initializer_list<const char*> known);

// An open object of this addon of the given kind.
std::shared_ptr<VerbsObject> readHandle(const Napi::Value& value, const std::string& name, Kind kind);
template <typename T>
std::shared_ptr<T> readHandleAs(const Napi::Value& value, const std::string& name, Kind kind) {
  return std::static_pointer_cast<T>(readHandle(value, name, kind));
}

inline bool isAbsent(const Napi::Value& value) {
  return value.IsUndefined();
}
inline bool isNothing(const Napi::Value& value) {
  return value.IsUndefined() || value.IsNull();
}

// A member of an options object, `fallback` if it is absent.
uint64_t readIntegerMember(const Napi::Object& object, const char* name, uint64_t min, uint64_t max, uint64_t fallback);
bool readBooleanMember(const Napi::Object& object, const char* name, bool fallback);

// "0254:00ff:fe12:3456"
std::string guidToString(uint64_t guid);
// Eight groups of four hexadecimal digits; throws QUORATE_INVALID_ARGUMENT for anything else.
Gid parseGid(const std::string& text, const std::string& name);

}  // namespace quorate::addon

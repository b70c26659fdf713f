// See arguments.h.
#include "addon/arguments.h"

#include <cmath>
#include <cstring>

namespace quorate::addon {

void throwInvalidArgument(const std::string& message) {
  throw VerbsError("QUORATE_INVALID_ARGUMENT", message);
}
void throwOutOfRange(const std::string& message) {
  throw VerbsError("QUORATE_OUT_OF_RANGE", message);
}

namespace {

const char* typeName(const Napi::Value& value) {
  switch (value.Type()) {
    case napi_undefined:
      return "undefined";
    case napi_null:
      return "null";
    case napi_boolean:
      return "a boolean";
    case napi_number:
      return "a number";
    case napi_string:
      return "a string";
    case napi_symbol:
      return "a symbol";
    case napi_function:
      return "a function";
    case napi_external:
      return "an external value";
    case napi_bigint:
      return "a bigint";
    default:
      return "an object";
  }
}

std::string numberText(double number) {
  if (std::isnan(number)) return "NaN";
  char text[40];
  std::snprintf(text, sizeof text, "%.17g", number);
  return text;
}

}  // namespace

uint64_t readInteger(const Napi::Value& value, const std::string& name, uint64_t min, uint64_t max) {
  if (!value.IsNumber()) throwInvalidArgument(name + " must be a number, got " + typeName(value));
  const double number = value.As<Napi::Number>().DoubleValue();
  if (!(number >= static_cast<double>(min) && number <= static_cast<double>(max)) || number != std::floor(number)) {
    throwOutOfRange(name + " must be an integer from " + std::to_string(min) + " to " + std::to_string(max) + ", got " +
                    numberText(number));
  }
  return static_cast<uint64_t>(number);
}

uint64_t readUint64(const Napi::Value& value, const std::string& name) {
  if (value.IsNumber()) return readInteger(value, name, 0, kMaxSafeInteger);
  if (!value.IsBigInt()) throwInvalidArgument(name + " must be a bigint or a number, got " + typeName(value));
  bool lossless = false;
  const uint64_t number = value.As<Napi::BigInt>().Uint64Value(&lossless);
  if (!lossless) throwOutOfRange(name + " must be a bigint from 0 to 2^64-1");
  return number;
}

bool readBoolean(const Napi::Value& value, const std::string& name) {
  if (!value.IsBoolean()) throwInvalidArgument(name + " must be a boolean, got " + typeName(value));
  return value.As<Napi::Boolean>().Value();
}

std::string readString(const Napi::Value& value, const std::string& name, size_t maxLength) {
  if (!value.IsString()) throwInvalidArgument(name + " must be a string, got " + typeName(value));
  std::string text = value.As<Napi::String>().Utf8Value();
  if (text.size() > maxLength) {
    throwOutOfRange(name + " must be at most " + std::to_string(maxLength) + " bytes long, got " +
                    std::to_string(text.size()));
  }
  if (text.find('\0') != std::string::npos) throwInvalidArgument(name + " must not contain a NUL character");
  return text;
}

Napi::Object readObject(const Napi::Value& value, const std::string& name) {
  if (!value.IsObject() || value.IsFunction())
    throwInvalidArgument(name + " must be an object, got " + typeName(value));
  return value.As<Napi::Object>();
}

void refuseUnknownMembers(const Napi::Object& object, const std::string& name,
                          std::initializer_list<const char*> known) {
  const Napi::Array names = object.GetPropertyNames();
  for (uint32_t i = 0; i < names.Length(); i++) {
    const std::string member = Napi::Value(names.Get(i)).ToString().Utf8Value();
    bool found = false;
    for (const char* candidate : known) found = found || member == candidate;
    if (found) continue;
    std::string list;
    for (const char* candidate : known) list += (list.empty() ? "" : ", ") + std::string(candidate);
    throwInvalidArgument(name + " has no member '" + member.substr(0, 100) + "'; there are: " + list);
  }
}

std::shared_ptr<VerbsObject> readHandle(const Napi::Value& value, const std::string& name, Kind kind) {
  Wrapper* wrapper = Environment::unwrap(value.Env(), value);
  if (wrapper == nullptr) {
    throwInvalidArgument(name + " must be a " + kindName(kind) + ", got " + typeName(value));
  }
  if (wrapper->kind != kind) {
    throwInvalidArgument(name + " must be a " + kindName(kind) + ", got a " + kindName(wrapper->kind));
  }
  if (wrapper->object->closed()) throw VerbsError("QUORATE_CLOSED", name + ": this " + kindName(kind) + " is closed");
  return wrapper->object;
}

uint64_t readIntegerMember(const Napi::Object& object, const char* name, uint64_t min, uint64_t max,
                           uint64_t fallback) {
  const Napi::Value value = object.Get(name);
  return isAbsent(value) ? fallback : readInteger(value, name, min, max);
}

bool readBooleanMember(const Napi::Object& object, const char* name, bool fallback) {
  const Napi::Value value = object.Get(name);
  return isAbsent(value) ? fallback : readBoolean(value, name);
}

std::string guidToString(uint64_t guid) {
  char text[20];
  std::snprintf(text, sizeof text, "%04x:%04x:%04x:%04x", static_cast<unsigned>(guid >> 48 & 0xffff),
                static_cast<unsigned>(guid >> 32 & 0xffff), static_cast<unsigned>(guid >> 16 & 0xffff),
                static_cast<unsigned>(guid & 0xffff));
  return text;
}

Gid parseGid(const std::string& text, const std::string& name) {
  Gid gid;
  bool good = text.size() == 39;
  for (size_t i = 0; good && i < text.size(); i++) {
    const char c = text[i];
    if (i % 5 == 4) {
      good = c == ':';
      continue;
    }
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    good = digit >= 0;
    if (!good) break;
    const size_t nibble = i / 5 * 4 + i % 5;
    gid.raw[nibble / 2] = static_cast<uint8_t>(gid.raw[nibble / 2] << 4 | digit);
  }
  if (!good) {
    throwInvalidArgument(name + " must be eight groups of four hexadecimal digits (fe80:0000:...), got '" +
                         text.substr(0, 60) + "'");
  }
  return gid;
}

}  // namespace quorate::addon

// The JavaScript function of the checksum of native/verbs/checksum.h.
#include "addon/checksum.h"

#include <cstdint>

#include "addon/arguments.h"
#include "verbs/checksum.h"

namespace quorate::addon {

namespace {

void takeArray(Checksum* sum, const Napi::Value& value) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    throwInvalidArgument("bytes must be a Uint8Array, or an array of them");
  }
  const auto bytes = value.As<Napi::Uint8Array>();
  sum->take(bytes.Data(), bytes.ByteLength());
}

// (bytes, before)
Napi::Value checksum(Environment& environment, const Napi::CallbackInfo& info) {
  Checksum sum(readInteger(info[1], "before", 0, kMaxSafeInteger));
  if (info[0].IsArray()) {
    const auto pieces = info[0].As<Napi::Array>();
    for (uint32_t index = 0; index < pieces.Length(); index++) takeArray(&sum, pieces.Get(index));
  } else {
    takeArray(&sum, info[0]);
  }
  return number(environment.env(), static_cast<double>(sum.result()));
}

}  // namespace

std::vector<napi_property_descriptor> checksumFunctions(Environment* environment) {
  return {function<checksum>(environment, "checksum")};
}

}  // namespace quorate::addon

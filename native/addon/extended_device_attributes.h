// ExtendedDeviceAttributes as JavaScript has them.
#pragma once

#include "napi_support.h"
#include "verbs/extended_device_attributes.h"

namespace quorate::addon {

Napi::Object extendedDeviceAttributesObject(Napi::Env env, const ExtendedDeviceAttributes& attributes);

}  // namespace quorate::addon

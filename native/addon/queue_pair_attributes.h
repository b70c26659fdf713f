// Attributes of queue pairs as JavaScript has them.
#pragma once

#include "napi_support.h"
#include "verbs/verbs.h"

namespace quorate::addon {

// The members that the mask names, and the state.
Napi::Object queuePairAttributesObject(Napi::Env env, const QpAttributes& attributes);

}  // namespace quorate::addon

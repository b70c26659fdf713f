// Address vectors between JavaScript and the verbs model: of queue pairs' attributes and of address handles.
#pragma once

#include "addon/environment.h"

namespace quorate::addon {

AddressVector readAddressVector(const Napi::Value& value);
Napi::Object addressVectorObject(Napi::Env env, const AddressVector& av);

}  // namespace quorate::addon

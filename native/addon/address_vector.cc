// See address_vector.h. Also the JavaScript class AddressHandle, which is little more than one.
#include "addon/address_vector.h"

#include <string>

#include "addon/arguments.h"

namespace quorate::addon {

AddressVector readAddressVector(const Napi::Value& value) {
  const Napi::Object object = readObject(value, "av");
  refuseUnknownMembers(
      object, "av",
      {"isGlobal", "dgid", "sgidIndex", "hopLimit", "trafficClass", "flowLabel", "dlid", "sl", "portNum"});
  AddressVector av;
  const Napi::Value dgid = object.Get("dgid");
  if (!isAbsent(dgid)) av.dgid = parseGid(readString(dgid, "av.dgid"), "av.dgid");
  av.isGlobal = readBooleanMember(object, "isGlobal", !isAbsent(dgid));
  av.sgidIndex = static_cast<int>(readIntegerMember(object, "sgidIndex", 0, 255, av.sgidIndex));
  av.hopLimit = static_cast<int>(readIntegerMember(object, "hopLimit", 0, 255, av.hopLimit));
  av.trafficClass = static_cast<uint8_t>(readIntegerMember(object, "trafficClass", 0, 255, av.trafficClass));
  av.flowLabel = static_cast<uint32_t>(readIntegerMember(object, "flowLabel", 0, 0xfffff, av.flowLabel));
  av.dlid = static_cast<uint16_t>(readIntegerMember(object, "dlid", 0, 0xffff, av.dlid));
  av.sl = static_cast<uint8_t>(readIntegerMember(object, "sl", 0, 15, av.sl));
  av.portNum = static_cast<uint8_t>(readIntegerMember(object, "portNum", 1, 255, av.portNum));
  return av;
}

Napi::Object addressVectorObject(Napi::Env env, const AddressVector& av) {
  Napi::Object vector = Napi::Object::New(env);
  vector.Set("isGlobal", Napi::Boolean::New(env, av.isGlobal));
  vector.Set("dgid", av.dgid.toString());
  vector.Set("sgidIndex", number(env, av.sgidIndex));
  vector.Set("hopLimit", number(env, av.hopLimit));
  vector.Set("trafficClass", number(env, av.trafficClass));
  vector.Set("flowLabel", number(env, av.flowLabel));
  vector.Set("dlid", number(env, av.dlid));
  vector.Set("sl", number(env, av.sl));
  vector.Set("portNum", number(env, av.portNum));
  return vector;
}

namespace {

Napi::Value getAttributes(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return addressVectorObject(environment.env(), as<AddressHandle>(self)->attributes());
}

}  // namespace

std::vector<napi_property_descriptor> addressHandleMembers(Environment* environment) {
  constexpr Kind k = Kind::AddressHandle;
  return {getter<k, getAttributes>(environment, "attributes")};
}

}  // namespace quorate::addon

// JavaScript classes CmEventChannel and CmId: the connection manager of the kernel's RDMA devices. That of the shm
// device is written in JavaScript (lib/verbs/cm/shm-*.ts) and has the same members.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "addon/arguments.h"
#include "addon/environment.h"
#include "addon/event_watcher.h"
#include "addon/promise_worker.h"
#include "addon/queue_pair_attributes.h"
#include "verbs/connection_manager.h"

namespace quorate::addon {

namespace {

constexpr uint64_t kMaxTimeoutMs = 600'000;
constexpr uint64_t kMaxBacklog = 65'535;
constexpr size_t kMaxHostLength = 128;

std::vector<uint8_t> readPrivateData(const Napi::Value& value, size_t maxBytes) {
  if (isAbsent(value)) return {};
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    throwInvalidArgument("privateData must be a Uint8Array");
  }
  const auto array = value.As<Napi::Uint8Array>();
  if (array.ByteLength() > maxBytes) {
    throwOutOfRange("privateData must have at most " + std::to_string(maxBytes) + " bytes here, got " +
                    std::to_string(array.ByteLength()));
  }
  if (array.ByteLength() == 0) return {};
  return std::vector<uint8_t>(array.Data(), array.Data() + array.ByteLength());
}

CmAddress readAddress(const Napi::Value& value, const std::string& name) {
  const Napi::Object object = readObject(value, name);
  refuseUnknownMembers(object, name, {"host", "port"});
  CmAddress address;
  address.host = readString(object.Get("host"), name + ".host", kMaxHostLength);
  address.port = static_cast<uint16_t>(readInteger(object.Get("port"), name + ".port", 0, 0xffff));
  return address;
}

CmConnectionParameters readParameters(const Napi::Value& value, size_t maxPrivateDataBytes) {
  const Napi::Object object = readObject(value, "parameters");
  refuseUnknownMembers(object, "parameters",
                       {"privateData", "responderResources", "initiatorDepth", "flowControl", "retryCount",
                        "rnrRetryCount", "srq", "qpNum", "endpoint"});
  CmConnectionParameters parameters;
  parameters.privateData = readPrivateData(object.Get("privateData"), maxPrivateDataBytes);
  const auto read = [&](const char* name, uint64_t max, uint64_t fallback) {
    return static_cast<uint8_t>(readIntegerMember(object, name, 0, max, fallback));
  };
  parameters.responderResources = read("responderResources", 255, 0);
  parameters.initiatorDepth = read("initiatorDepth", 255, 0);
  parameters.flowControl = readBooleanMember(object, "flowControl", false);
  parameters.retryCount = read("retryCount", 7, 7);
  parameters.rnrRetryCount = read("rnrRetryCount", 7, 7);
  parameters.srq = readBooleanMember(object, "srq", false);
  parameters.qpNum = static_cast<uint32_t>(readInteger(object.Get("qpNum"), "qpNum", 0, 0xffffff));
  return parameters;
}

Napi::Value addressObject(Napi::Env env, const CmAddress& address) {
  if (address.host.empty()) return env.Null();
  Napi::Object object = Napi::Object::New(env);
  object.Set("host", address.host);
  object.Set("port", number(env, address.port));
  return object;
}

Napi::Object eventObject(Environment& environment, const CmEvent& event) {
  Napi::Env env = environment.env();
  Napi::Object object = Napi::Object::New(env);
  object.Set("type", number(env, event.type));
  object.Set("status", number(env, event.status));
  object.Set("id", event.id == nullptr ? env.Null() : environment.wrap(event.id));
  object.Set("listener", event.listener == nullptr ? env.Null() : environment.wrap(event.listener));
  if (!event.hasParameters) {
    object.Set("parameters", env.Null());
    return object;
  }
  const CmConnectionParameters& from = event.parameters;
  Napi::Object parameters = Napi::Object::New(env);
  Napi::Uint8Array privateData = Napi::Uint8Array::New(env, from.privateData.size());
  std::copy(from.privateData.begin(), from.privateData.end(), privateData.Data());
  parameters.Set("privateData", privateData);
  const std::pair<const char*, double> numbers[] = {
      {"responderResources", from.responderResources},
      {"initiatorDepth", from.initiatorDepth},
      {"retryCount", from.retryCount},
      {"rnrRetryCount", from.rnrRetryCount},
      {"qpNum", from.qpNum},
  };
  for (const auto& [name, value] : numbers) parameters.Set(name, number(env, value));
  parameters.Set("flowControl", Napi::Boolean::New(env, from.flowControl));
  parameters.Set("srq", Napi::Boolean::New(env, from.srq));
  object.Set("parameters", parameters);
  return object;
}

Napi::Value openChannel(Environment& environment, const Napi::CallbackInfo&) {
  return environment.wrap(makeRdmaCmEventChannel());
}

Napi::Value getCmFd(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment.env(), as<CmEventChannel>(self)->fd());
}

Napi::Value createId(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return environment.wrap(as<CmEventChannel>(self)->createId());
}

Napi::Value onCmEvent(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const std::shared_ptr<CmEventChannel> channel = as<CmEventChannel>(self);
  watchEvents(
      environment, channel, info[0], [channel] { return channel->fd(); },
      [channel](Environment& in, const std::function<void(napi_value)>& deliver) {
        CmEvent event;
        if (!channel->getEvent(&event)) return false;
        deliver(eventObject(in, event));
        return true;
      });
  return environment.env().Undefined();
}

Napi::Value getDeviceName(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return Napi::String::New(environment.env(), as<CmId>(self)->deviceName());
}

Napi::Value getPortNum(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment.env(), as<CmId>(self)->portNum());
}

template <CmAddress (CmId::*read)()>
Napi::Value getAddress(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return addressObject(environment.env(), (*as<CmId>(self).*read)());
}

Napi::Value bindAddress(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  as<CmId>(self)->bindAddress(readAddress(info[0], "address"));
  return environment.env().Undefined();
}

// (source or null, destination, timeoutMs)
Napi::Value resolveAddress(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  CmAddress source;
  if (!isNothing(info[0])) source = readAddress(info[0], "source");
  const CmAddress destination = readAddress(info[1], "destination");
  const uint64_t timeoutMs = readInteger(info[2], "timeoutMs", 1, kMaxTimeoutMs);
  as<CmId>(self)->resolveAddress(source, destination, static_cast<int>(timeoutMs));
  return environment.env().Undefined();
}

Napi::Value resolveRoute(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const uint64_t timeoutMs = readInteger(info[0], "timeoutMs", 1, kMaxTimeoutMs);
  return PromiseWorker::start(environment, "quorate.CmId.resolveRoute",
                              [id = as<CmId>(self), timeoutMs] { id->resolveRoute(static_cast<int>(timeoutMs)); });
}

Napi::Value listen(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  as<CmId>(self)->listen(static_cast<int>(readInteger(info[0], "backlog", 1, kMaxBacklog)));
  return environment.env().Undefined();
}

Napi::Value connect(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  as<CmId>(self)->connect(readParameters(info[0], kMaxConnectPrivateDataBytes));
  return environment.env().Undefined();
}

Napi::Value accept(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  as<CmId>(self)->accept(readParameters(info[0], kMaxAcceptPrivateDataBytes));
  return environment.env().Undefined();
}

Napi::Value reject(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  as<CmId>(self)->reject(readPrivateData(info[0], kMaxRejectPrivateDataBytes));
  return environment.env().Undefined();
}

template <void (CmId::*call)()>
Napi::Value callWithoutArguments(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  (*as<CmId>(self).*call)();
  return environment.env().Undefined();
}

Napi::Value queuePairAttributes(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const auto state = static_cast<QpState>(
      readInteger(info[0], "state", static_cast<uint64_t>(QpState::Init), static_cast<uint64_t>(QpState::Rts)));
  return queuePairAttributesObject(environment.env(), as<CmId>(self)->queuePairAttributes(state));
}

}  // namespace

std::vector<napi_property_descriptor> cmEventChannelMembers(Environment* environment) {
  constexpr Kind k = Kind::CmEventChannel;
  return {
      getter<k, getCmFd>(environment, "fd"),
      method<k, createId>(environment, "createId"),
      method<k, onCmEvent>(environment, "onEvent"),
      method<k, setWatcherRef<true>>(environment, "ref"),
      method<k, setWatcherRef<false>>(environment, "unref"),
  };
}

std::vector<napi_property_descriptor> cmIdMembers(Environment* environment) {
  constexpr Kind k = Kind::CmId;
  return {
      getter<k, getDeviceName>(environment, "deviceName"),
      getter<k, getPortNum>(environment, "portNum"),
      getter<k, getAddress<&CmId::localAddress>>(environment, "localAddress"),
      getter<k, getAddress<&CmId::peerAddress>>(environment, "peerAddress"),
      method<k, bindAddress>(environment, "bindAddress"),
      method<k, resolveAddress>(environment, "resolveAddress"),
      method<k, resolveRoute>(environment, "resolveRoute"),
      method<k, listen>(environment, "listen"),
      method<k, connect>(environment, "connect"),
      method<k, callWithoutArguments<&CmId::establish>>(environment, "establish"),
      method<k, accept>(environment, "accept"),
      method<k, reject>(environment, "reject"),
      method<k, callWithoutArguments<&CmId::disconnect>>(environment, "disconnect"),
      method<k, queuePairAttributes>(environment, "queuePairAttributes"),
  };
}

std::vector<napi_property_descriptor> cmFunctions(Environment* environment) {
  return {function<openChannel>(environment, "openCmEventChannel")};
}

}  // namespace quorate::addon

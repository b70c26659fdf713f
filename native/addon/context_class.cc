// JavaScript classes Context and ProtectionDomain, and the functions that list and open devices.
#include <string>
#include <utility>

#include "addon/address_vector.h"
#include "addon/arguments.h"
#include "addon/devices.h"
#include "addon/environment.h"
#include "addon/event_watcher.h"
#include "addon/extended_device_attributes.h"
#include "addon/memory_ranges.h"

namespace quorate::addon {

namespace {

constexpr uint64_t kMaxMemoryBytes = 1ull << 46;
constexpr uint64_t kMaxInt32 = 0x7fffffff;

Napi::Object deviceInfoObject(Napi::Env env, const DeviceInfo& device) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("name", device.name);
  object.Set("provider", device.provider);
  object.Set("driver", device.driver);
  object.Set("nodeType", device.nodeType);
  object.Set("transport", device.transport);
  object.Set("nodeGuid", guidToString(device.nodeGuid));
  return object;
}

Napi::Object gidObject(Napi::Env env, const GidEntry& entry) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("index", number(env, entry.index));
  object.Set("gid", entry.gid.toString());
  object.Set("type", number(env, static_cast<int>(entry.type)));
  object.Set("netdev", entry.netdev);
  return object;
}

uint64_t readPort(const Napi::Value& value) {
  return readInteger(value, "portNum", 1, 255);
}

Napi::Value getDevice(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return deviceInfoObject(environment.env(), as<Context>(self)->device());
}

Napi::Value getFlagsSynchronous(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return Napi::Boolean::New(environment.env(), as<Context>(self)->accessFlagsRevocationIsSynchronous());
}

Napi::Value getChecksummedReads(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return Napi::Boolean::New(environment.env(), as<Context>(self)->checksummedReads());
}

Napi::Value queryDevice(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  const DeviceAttributes a = as<Context>(self)->queryDevice();
  Napi::Env env = environment.env();
  Napi::Object object = Napi::Object::New(env);
  object.Set("firmwareVersion", a.firmwareVersion);
  object.Set("nodeGuid", guidToString(a.nodeGuid));
  object.Set("sysImageGuid", guidToString(a.sysImageGuid));
  object.Set("maxMrSize", Napi::BigInt::New(env, a.maxMrSize));
  object.Set("pageSizeCap", Napi::BigInt::New(env, a.pageSizeCap));
  const std::pair<const char*, double> numbers[] = {
      {"vendorId", a.vendorId},
      {"vendorPartId", a.vendorPartId},
      {"hwVersion", a.hwVersion},
      {"maxQp", a.maxQp},
      {"maxQpWr", a.maxQpWr},
      {"maxSge", a.maxSge},
      {"maxSgeRd", a.maxSgeRd},
      {"maxCq", a.maxCq},
      {"maxCqe", a.maxCqe},
      {"maxMr", a.maxMr},
      {"maxPd", a.maxPd},
      {"maxQpRdAtom", a.maxQpRdAtom},
      {"maxQpInitRdAtom", a.maxQpInitRdAtom},
      {"maxResRdAtom", a.maxResRdAtom},
      {"atomicCap", a.atomicCap},
      {"maxSrq", a.maxSrq},
      {"maxSrqWr", a.maxSrqWr},
      {"maxSrqSge", a.maxSrqSge},
      {"maxMw", a.maxMw},
      {"maxAh", a.maxAh},
      {"maxMcastGrp", a.maxMcastGrp},
      {"maxPkeys", a.maxPkeys},
      {"deviceCapFlags", a.deviceCapFlags},
      {"physPortCnt", a.physPortCnt},
      {"hcaCoreClockKhz", static_cast<double>(a.hcaCoreClockKhz)},
  };
  for (const auto& [name, value] : numbers) object.Set(name, number(env, value));
  object.Set("completionTimestampMask", Napi::BigInt::New(env, a.completionTimestampMask));
  return object;
}

Napi::Value queryDeviceExtended(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return extendedDeviceAttributesObject(environment.env(), as<Context>(self)->queryDeviceExtended());
}

Napi::Value queryPort(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const PortAttributes a = as<Context>(self)->queryPort(static_cast<int>(readPort(info[0])));
  Napi::Env env = environment.env();
  Napi::Object object = Napi::Object::New(env);
  const std::pair<const char*, double> numbers[] = {
      {"state", static_cast<int>(a.state)},
      {"maxMtuBytes", a.maxMtuBytes},
      {"activeMtuBytes", a.activeMtuBytes},
      {"gidTblLen", a.gidTblLen},
      {"pkeyTblLen", a.pkeyTblLen},
      {"portCapFlags", a.portCapFlags},
      {"maxMsgSz", a.maxMsgSz},
      {"lid", a.lid},
      {"smLid", a.smLid},
      {"lmc", a.lmc},
      {"activeWidth", a.activeWidth},
      {"activeSpeed", a.activeSpeed},
      {"physState", a.physState},
      {"portCapFlags2", a.portCapFlags2},
      {"badPkeyCntr", a.badPkeyCntr},
      {"qkeyViolCntr", a.qkeyViolCntr},
      {"maxVlNum", a.maxVlNum},
      {"smSl", a.smSl},
      {"subnetTimeout", a.subnetTimeout},
      {"initTypeReply", a.initTypeReply},
  };
  for (const auto& [name, value] : numbers) object.Set(name, number(env, value));
  object.Set("linkLayer", a.linkLayer);
  return object;
}

Napi::Value queryGids(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const std::vector<GidEntry> gids = as<Context>(self)->queryGids(static_cast<int>(readPort(info[0])));
  Napi::Array array = Napi::Array::New(environment.env(), gids.size());
  for (uint32_t i = 0; i < gids.size(); i++) array.Set(i, gidObject(environment.env(), gids[i]));
  return array;
}

Napi::Value queryPkey(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const int port = static_cast<int>(readPort(info[0]));
  return number(environment.env(),
                as<Context>(self)->queryPkey(port, static_cast<int>(readInteger(info[1], "index", 0, 0xffff))));
}

Napi::Value chooseGidOfPort(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const int port = static_cast<int>(readPort(info[0]));
  const std::shared_ptr<Context> context = as<Context>(self);
  return gidObject(environment.env(), chooseGid(context->queryGids(port), context->queryPort(port)));
}

// (portNum, completion, memory, offset): the routing header is at `offset` of the memory.
Napi::Value addressVectorFromCompletion(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const int port = static_cast<int>(readPort(info[0]));
  const Napi::Object object = readObject(info[1], "completion");
  WorkCompletion completion;
  const auto read = [&](const char* name, uint64_t max) { return readIntegerMember(object, name, 0, max, 0); };
  completion.wcFlags = static_cast<uint32_t>(read("wcFlags", kMaxUint32));
  completion.srcQpNum = static_cast<uint32_t>(read("srcQpNum", kMaxUint32));
  completion.slid = static_cast<uint16_t>(read("slid", 0xffff));
  completion.sl = static_cast<uint8_t>(read("sl", 0xff));
  completion.dlidPathBits = static_cast<uint8_t>(read("dlidPathBits", 0xff));
  completion.pkeyIndex = static_cast<uint16_t>(read("pkeyIndex", 0xffff));
  const auto memory = readHandleAs<Memory>(info[2], "memory", Kind::Memory);
  const uint64_t offset = readInteger(info[3], "offset", 0, kMaxSafeInteger);
  if (memory->length() < kGrhBytes || offset > memory->length() - kGrhBytes) {
    throwOutOfRange("the " + std::to_string(kGrhBytes) + " bytes at offset " + std::to_string(offset) +
                    " are not inside the memory of " + std::to_string(memory->length()) + " bytes");
  }
  return addressVectorObject(environment.env(),
                             as<Context>(self)->addressVectorFromCompletion(port, completion, memory->data() + offset));
}

Napi::Value createAddressHandle(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  return environment.wrap(as<ProtectionDomain>(self)->createAddressHandle(readAddressVector(info[0])));
}

Napi::Value allocateMemory(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const Napi::Object object = readObject(info[0], "options");
  refuseUnknownMembers(object, "options", {"lengthBytes", "shared", "sharedPath", "hugePages"});
  MemoryOptions options;
  options.lengthBytes = readInteger(object.Get("lengthBytes"), "lengthBytes", 1, kMaxMemoryBytes);
  options.shared = readBooleanMember(object, "shared", false);
  options.hugePages = readBooleanMember(object, "hugePages", false);
  const Napi::Value path = object.Get("sharedPath");
  if (!isAbsent(path)) options.sharedPath = readString(path, "sharedPath");
  if (options.shared && options.sharedPath.empty()) {
    throwInvalidArgument("shared memory needs sharedPath, the file that backs it");
  }
  if (!options.shared && !options.sharedPath.empty())
    throwInvalidArgument("sharedPath is given but shared is not true");
  const std::shared_ptr<Memory> memory = as<Context>(self)->allocateMemory(options);
  rememberMemoryRange(memory);
  return environment.wrap(memory);
}

Napi::Object asyncEventObject(Environment& environment, const AsyncEvent& event) {
  Napi::Object object = Napi::Object::New(environment.env());
  object.Set("type", number(environment.env(), event.type));
  object.Set("object", event.object == nullptr ? environment.env().Null() : environment.wrap(event.object));
  object.Set("portNum", number(environment.env(), event.portNum));
  return object;
}

Napi::Value getAsyncEvent(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  AsyncEvent event;
  if (!as<Context>(self)->getAsyncEvent(&event)) return environment.env().Null();
  return asyncEventObject(environment, event);
}

Napi::Value onAsyncEvent(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const std::shared_ptr<Context> context = as<Context>(self);
  watchEvents(
      environment, context, info[0], [context] { return context->asyncFd(); },
      [context](Environment& in, const std::function<void(napi_value)>& deliver) {
        AsyncEvent event;
        if (!context->getAsyncEvent(&event)) return false;
        deliver(asyncEventObject(in, event));
        return true;
      });
  return environment.env().Undefined();
}

Napi::Value createSharedReceiveQueue(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const uint64_t maxWr = readInteger(info[0], "maxWr", 1, kMaxUint32);
  const uint64_t maxSge = isAbsent(info[1]) ? 1 : readInteger(info[1], "maxSge", 1, kMaxUint32);
  return environment.wrap(as<ProtectionDomain>(self)->createSharedReceiveQueue(static_cast<uint32_t>(maxWr),
                                                                               static_cast<uint32_t>(maxSge)));
}

Napi::Value allocateMemoryWindow(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const int type = static_cast<int>(readInteger(info[0], "type", 1, 2));
  return environment.wrap(as<ProtectionDomain>(self)->allocateMemoryWindow(type));
}

Napi::Value allocateProtectionDomain(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return environment.wrap(as<Context>(self)->allocateProtectionDomain());
}

Napi::Value createCompletionChannel(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return environment.wrap(as<Context>(self)->createCompletionChannel());
}

Napi::Value createCompletionQueue(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const uint64_t depth = readInteger(info[0], "depth", 1, kMaxInt32);
  std::shared_ptr<CompletionChannel> channel;
  if (!isNothing(info[1])) channel = readHandleAs<CompletionChannel>(info[1], "channel", Kind::CompletionChannel);
  CqOptions options;
  if (!isAbsent(info[2])) {
    const Napi::Object object = readObject(info[2], "options");
    refuseUnknownMembers(object, "options", {"extended", "timestamps"});
    options.extended = readBooleanMember(object, "extended", false);
    options.timestamps = static_cast<Timestamps>(readIntegerMember(object, "timestamps", 0, 2, 0));
  }
  return environment.wrap(as<Context>(self)->createCompletionQueue(static_cast<int>(depth), channel, options));
}

Napi::Value registerMemory(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const auto memory = readHandleAs<Memory>(info[0], "memory", Kind::Memory);
  const uint64_t offset = readInteger(info[1], "offset", 0, kMaxSafeInteger);
  const uint64_t length = readInteger(info[2], "length", 1, kMaxSafeInteger);
  const uint64_t access = readInteger(info[3], "access", 0, kAllAccess);
  if (offset > memory->length() || length > memory->length() - offset) {
    throwOutOfRange("offset " + std::to_string(offset) + " and length " + std::to_string(length) +
                    " reach beyond the memory of " + std::to_string(memory->length()) + " bytes");
  }
  return environment.wrap(
      as<ProtectionDomain>(self)->registerMemory(memory, offset, length, static_cast<uint32_t>(access)));
}

Napi::Value createQueuePair(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const Napi::Object object = readObject(info[0], "init");
  refuseUnknownMembers(object, "init", {"type", "sendCq", "recvCq", "cap", "signalAll", "srq"});
  QpInit init;
  init.type = static_cast<QpType>(readIntegerMember(object, "type", 2, 4, static_cast<uint64_t>(QpType::Rc)));
  init.sendCq = readHandleAs<CompletionQueue>(object.Get("sendCq"), "sendCq", Kind::CompletionQueue);
  init.recvCq = readHandleAs<CompletionQueue>(object.Get("recvCq"), "recvCq", Kind::CompletionQueue);
  init.signalAll = readBooleanMember(object, "signalAll", false);
  const Napi::Value srq = object.Get("srq");
  if (!isAbsent(srq)) init.srq = readHandleAs<SharedReceiveQueue>(srq, "srq", Kind::SharedReceiveQueue);
  const Napi::Value capValue = object.Get("cap");
  if (!isAbsent(capValue)) {
    const Napi::Object cap = readObject(capValue, "cap");
    refuseUnknownMembers(cap, "cap", {"maxSendWr", "maxRecvWr", "maxSendSge", "maxRecvSge", "maxInlineData"});
    const auto read = [&](const char* name, uint32_t& member) {
      member = static_cast<uint32_t>(readIntegerMember(cap, name, 0, kMaxUint32, member));
    };
    read("maxSendWr", init.cap.maxSendWr);
    read("maxRecvWr", init.cap.maxRecvWr);
    read("maxSendSge", init.cap.maxSendSge);
    read("maxRecvSge", init.cap.maxRecvSge);
    read("maxInlineData", init.cap.maxInlineData);
  }
  return environment.wrap(as<ProtectionDomain>(self)->createQueuePair(init));
}

std::string readShmDirectory(const Napi::Value& options) {
  if (isAbsent(options)) return {};
  const Napi::Object object = readObject(options, "options");
  refuseUnknownMembers(object, "options", {"shmDirectory"});
  const Napi::Value directory = object.Get("shmDirectory");
  if (isAbsent(directory)) return {};
  std::string text = readString(directory, "shmDirectory");
  if (text.empty()) throwInvalidArgument("shmDirectory must not be empty");
  return text;
}

Napi::Value listDevicesFunction(Environment& environment, const Napi::CallbackInfo& info) {
  const std::vector<DeviceInfo> list = listDevices(readShmDirectory(info[0]));
  Napi::Array array = Napi::Array::New(environment.env(), list.size());
  for (uint32_t i = 0; i < list.size(); i++) array.Set(i, deviceInfoObject(environment.env(), list[i]));
  return array;
}

Napi::Value ibverbsStatusFunction(Environment& environment, const Napi::CallbackInfo&) {
  const IbverbsStatus status = ibverbsStatus();
  Napi::Object object = Napi::Object::New(environment.env());
  object.Set("available", Napi::Boolean::New(environment.env(), status.available));
  if (!status.available) {
    object.Set("code", status.code);
    object.Set("message", status.message);
  }
  return object;
}

Napi::Value openDeviceFunction(Environment& environment, const Napi::CallbackInfo& info) {
  const std::string name = readString(info[0], "name", 255);
  return environment.wrap(openDevice(name, readShmDirectory(info[1])));
}

Napi::Value wcStatusNameFunction(Environment& environment, const Napi::CallbackInfo& info) {
  return Napi::String::New(environment.env(),
                           wcStatusName(static_cast<int>(readInteger(info[0], "status", 0, kMaxInt32))));
}

Napi::Value wcStatusExplanationFunction(Environment& environment, const Napi::CallbackInfo& info) {
  return Napi::String::New(environment.env(),
                           wcStatusExplanation(static_cast<int>(readInteger(info[0], "status", 0, kMaxInt32))));
}

Napi::Value openPeerProcess(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const Gid gid = parseGid(readString(info[0], "gid", 64), "gid");
  std::shared_ptr<PeerProcess> peer = as<Context>(self)->openPeerProcess(gid);
  if (peer == nullptr) return environment.env().Null();
  return environment.wrap(std::move(peer));
}

}  // namespace

std::vector<napi_property_descriptor> contextMembers(Environment* environment) {
  constexpr Kind k = Kind::Context;
  return {
      getter<k, getDevice>(environment, "device"),
      getter<k, getFlagsSynchronous>(environment, "accessFlagsRevocationIsSynchronous"),
      getter<k, getChecksummedReads>(environment, "checksummedReads"),
      method<k, queryDevice>(environment, "queryDevice"),
      method<k, queryDeviceExtended>(environment, "queryDeviceExtended"),
      method<k, queryPort>(environment, "queryPort"),
      method<k, queryGids>(environment, "queryGids"),
      method<k, queryPkey>(environment, "queryPkey"),
      method<k, chooseGidOfPort>(environment, "chooseGid"),
      method<k, addressVectorFromCompletion>(environment, "addressVectorFromCompletion"),
      method<k, allocateMemory>(environment, "allocateMemory"),
      method<k, allocateProtectionDomain>(environment, "allocateProtectionDomain"),
      method<k, createCompletionChannel>(environment, "createCompletionChannel"),
      method<k, createCompletionQueue>(environment, "createCompletionQueue"),
      method<k, openPeerProcess>(environment, "openPeerProcess"),
      method<k, getAsyncEvent>(environment, "getAsyncEvent"),
      method<k, onAsyncEvent>(environment, "onAsyncEvent"),
      method<k, setWatcherRef<true>>(environment, "ref"),
      method<k, setWatcherRef<false>>(environment, "unref"),
  };
}

std::vector<napi_property_descriptor> protectionDomainMembers(Environment* environment) {
  constexpr Kind k = Kind::ProtectionDomain;
  return {
      method<k, registerMemory>(environment, "registerMemory"),
      method<k, createQueuePair>(environment, "createQueuePair"),
      method<k, createAddressHandle>(environment, "createAddressHandle"),
      method<k, createSharedReceiveQueue>(environment, "createSharedReceiveQueue"),
      method<k, allocateMemoryWindow>(environment, "allocateMemoryWindow"),
  };
}

std::vector<napi_property_descriptor> deviceFunctions(Environment* environment) {
  return {
      function<listDevicesFunction>(environment, "listDevices"),
      function<ibverbsStatusFunction>(environment, "ibverbsStatus"),
      function<openDeviceFunction>(environment, "openDevice"),
      function<wcStatusNameFunction>(environment, "wcStatusName"),
      function<wcStatusExplanationFunction>(environment, "wcStatusExplanation"),
  };
}

}  // namespace quorate::addon

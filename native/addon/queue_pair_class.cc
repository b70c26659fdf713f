// JavaScript classes QueuePair and SharedReceiveQueue.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "addon/address_vector.h"
#include "addon/arguments.h"
#include "addon/environment.h"
#include "addon/memory_ranges.h"
#include "addon/promise_worker.h"
#include "addon/queue_pair_attributes.h"

namespace quorate::addon {

namespace {

constexpr uint64_t kAccessFlagsMax = 31;
constexpr uint32_t kSendFlagsMax = 15;
constexpr uint64_t kMaxPsn = 0xffffff;
constexpr uint64_t kMaxQpNum = 0xffffff;
constexpr uint64_t kMaxRequestsPerCall = 65536;
constexpr uint32_t kMaxElements = 256;  // of one request; devices take fewer

// An integer attribute of ibv_qp_attr: its JavaScript name, mask bit, range, and how it is stored and loaded.
struct AttributeField {
  const char* name;
  uint32_t maskBit;
  uint64_t max;
  void (*store)(QpAttributes&, uint64_t);
  double (*load)(const QpAttributes&);
};

template <auto member>
constexpr AttributeField field(const char* name, uint32_t maskBit, uint64_t max) {
  return {name, maskBit, max,
          [](QpAttributes& attributes, uint64_t value) {
            attributes.*member = static_cast<std::remove_reference_t<decltype(attributes.*member)>>(value);
          },
          [](const QpAttributes& attributes) { return static_cast<double>(static_cast<int64_t>(attributes.*member)); }};
}

constexpr AttributeField kFields[] = {
    field<&QpAttributes::state>("state", kQpState, 6),
    field<&QpAttributes::curState>("curState", kQpCurState, 6),
    field<&QpAttributes::accessFlags>("accessFlags", kQpAccessFlags, kAccessFlagsMax),
    field<&QpAttributes::pkeyIndex>("pkeyIndex", kQpPkeyIndex, 0xffff),
    field<&QpAttributes::portNum>("portNum", kQpPort, 255),
    field<&QpAttributes::pathMtuBytes>("pathMtuBytes", kQpPathMtu, 4096),
    field<&QpAttributes::timeout>("timeout", kQpTimeout, 31),
    field<&QpAttributes::retryCnt>("retryCnt", kQpRetryCnt, 7),
    field<&QpAttributes::rnrRetry>("rnrRetry", kQpRnrRetry, 7),
    field<&QpAttributes::rqPsn>("rqPsn", kQpRqPsn, kMaxPsn),
    field<&QpAttributes::sqPsn>("sqPsn", kQpSqPsn, kMaxPsn),
    field<&QpAttributes::maxRdAtomic>("maxRdAtomic", kQpMaxQpRdAtomic, 255),
    field<&QpAttributes::maxDestRdAtomic>("maxDestRdAtomic", kQpMaxDestRdAtomic, 255),
    field<&QpAttributes::minRnrTimer>("minRnrTimer", kQpMinRnrTimer, 31),
    field<&QpAttributes::destQpNum>("destQpNum", kQpDestQpn, kMaxUint32),
    field<&QpAttributes::qkey>("qkey", kQpQkey, kMaxUint32),
};

QpAttributes readAttributes(const Napi::Value& value) {
  const Napi::Object object = readObject(value, "attributes");
  refuseUnknownMembers(
      object, "attributes",
      {"state", "curState", "accessFlags", "pkeyIndex", "portNum", "av", "pathMtuBytes", "timeout", "retryCnt",
       "rnrRetry", "rqPsn", "sqPsn", "maxRdAtomic", "maxDestRdAtomic", "minRnrTimer", "destQpNum", "qkey"});
  QpAttributes attributes;
  for (const AttributeField& entry : kFields) {
    const Napi::Value member = object.Get(entry.name);
    if (isAbsent(member)) continue;
    const uint64_t given = readInteger(member, entry.name, 0, entry.max);
    if (entry.maskBit == kQpPathMtu && (given < 256 || (given & (given - 1)) != 0)) {
      throwOutOfRange("pathMtuBytes must be 256, 512, 1024, 2048 or 4096, got " + std::to_string(given));
    }
    entry.store(attributes, given);
    attributes.mask |= entry.maskBit;
  }
  const Napi::Value av = object.Get("av");
  if (!isAbsent(av)) {
    attributes.av = readAddressVector(av);
    attributes.mask |= kQpAv;
  }
  return attributes;
}

Napi::Value getNumber(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment.env(), as<QueuePair>(self)->number());
}

Napi::Value getType(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment.env(), static_cast<int>(as<QueuePair>(self)->type()));
}

Napi::Value getCapabilities(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  const QpCapabilities cap = as<QueuePair>(self)->capabilities();
  Napi::Object object = Napi::Object::New(environment.env());
  object.Set("maxSendWr", number(environment.env(), cap.maxSendWr));
  object.Set("maxRecvWr", number(environment.env(), cap.maxRecvWr));
  object.Set("maxSendSge", number(environment.env(), cap.maxSendSge));
  object.Set("maxRecvSge", number(environment.env(), cap.maxRecvSge));
  object.Set("maxInlineData", number(environment.env(), cap.maxInlineData));
  return object;
}

Napi::Value modify(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  as<QueuePair>(self)->modify(readAttributes(info[0]));
  return environment.env().Undefined();
}

// What a switch of permission is made of, without an object to read: in a failover that takes longer than the switch.
Napi::Value setAccessFlags(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  QpAttributes attributes;
  attributes.state = QpState::Rts;
  attributes.accessFlags = static_cast<uint32_t>(readInteger(info[0], "accessFlags", 0, kAccessFlagsMax));
  attributes.mask = kQpState | kQpAccessFlags;
  as<QueuePair>(self)->modify(attributes);
  return environment.env().Undefined();
}

Napi::Value modifyAsync(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  return PromiseWorker::start(
      environment, "quorate.QueuePair.modifyAsync",
      [queuePair = as<QueuePair>(self), attributes = readAttributes(info[0])] { queuePair->modify(attributes); });
}

Napi::Value query(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  const QpAttributes attributes = as<QueuePair>(self)->query();
  Napi::Object object = queuePairAttributesObject(environment.env(), attributes);
  object.Set("mask", number(environment.env(), attributes.mask));
  return object;
}

Napi::Array readRequests(const Napi::Value& value) {
  if (!value.IsArray()) throwInvalidArgument("requests must be an array");
  const Napi::Array array = value.As<Napi::Array>();
  if (array.Length() > kMaxRequestsPerCall) {
    throwOutOfRange("at most " + std::to_string(kMaxRequestsPerCall) + " requests can be posted in one call, got " +
                    std::to_string(array.Length()));
  }
  return array;
}

Napi::Object postResult(Environment& environment, size_t accepted, size_t count, int errnum) {
  Napi::Object object = Napi::Object::New(environment.env());
  object.Set("accepted", number(environment.env(), static_cast<double>(accepted)));
  object.Set("errno", number(environment.env(), accepted == count ? 0 : errnum));
  return object;
}

// The buffers of a request: localAddress, length and lkey, or `sges`, whose elements go into *elements. Those of
// several requests are collected before anything points to them.
template <typename Request>
void readBuffers(const Napi::Object& object, const std::string& name, Request* request, std::vector<Sge>* elements) {
  const Napi::Value value = object.Get("sges");
  if (isAbsent(value)) {
    request->localAddress = readIntegerMember(object, "localAddress", 0, kMaxSafeInteger, 0);
    request->length = static_cast<uint32_t>(readIntegerMember(object, "length", 0, kMaxUint32, 0));
    request->lkey = static_cast<uint32_t>(readIntegerMember(object, "lkey", 0, kMaxUint32, 0));
    return;
  }
  for (const char* other : {"localAddress", "length", "lkey"}) {
    if (!isAbsent(object.Get(other))) throwInvalidArgument(name + " has sges, and so no " + other + " of its own");
  }
  if (!value.IsArray()) throwInvalidArgument(name + ".sges must be an array");
  const Napi::Array array = value.As<Napi::Array>();
  if (array.Length() > kMaxElements) {
    throwOutOfRange(name + ".sges has " + std::to_string(array.Length()) + " elements, at most " +
                    std::to_string(kMaxElements));
  }
  elements->resize(array.Length());
  uint64_t sum = 0;
  for (uint32_t i = 0; i < elements->size(); i++) {
    const Napi::Object element = readObject(array.Get(i), name + ".sges[" + std::to_string(i) + "]");
    refuseUnknownMembers(element, "sge", {"address", "length", "lkey"});
    Sge& sge = (*elements)[i];
    sge.address = readInteger(element.Get("address"), "address", 0, kMaxSafeInteger);
    sge.length = static_cast<uint32_t>(readInteger(element.Get("length"), "length", 0, kMaxUint32));
    sge.lkey = static_cast<uint32_t>(readIntegerMember(element, "lkey", 0, kMaxUint32, 0));
    sum += sge.length;
  }
  if (sum > kMaxUint32)
    throwOutOfRange(name + ".sges are longer than " + std::to_string(kMaxUint32) + " bytes together");
  request->length = static_cast<uint32_t>(sum);
  if (elements->size() == 1) {
    request->localAddress = elements->front().address;
    request->lkey = elements->front().lkey;
  } else if (!elements->empty()) {
    request->sges = elements->data();
    request->sgeCount = static_cast<uint32_t>(elements->size());
  }
}

uint32_t readSendFlags(const Napi::Object& object, uint32_t known) {
  const auto flags = static_cast<uint32_t>(readIntegerMember(object, "sendFlags", 0, kMaxUint32, kSendSignaled));
  if ((flags & ~known) != 0) throwOutOfRange("sendFlags " + std::to_string(flags) + " has bits that mean nothing here");
  return flags;
}

// { memoryWindow?, region, address, length, access }
MwBind readBinding(const Napi::Object& object) {
  MwBind bind;
  const Napi::Value region = object.Get("region");
  if (!isNothing(region)) bind.region = readHandleAs<MemoryRegion>(region, "region", Kind::MemoryRegion);
  bind.address = readIntegerMember(object, "address", 0, kMaxSafeInteger, 0);
  bind.length = readIntegerMember(object, "length", 0, kMaxSafeInteger, 0);
  bind.access = static_cast<uint32_t>(readIntegerMember(object, "access", 0, kAllAccess, 0));
  if (bind.region == nullptr && bind.length != 0) throwInvalidArgument("a binding of some length needs a region");
  return bind;
}

// (memoryWindow, { region?, address?, length?, access?, wrId?, sendFlags? })
Napi::Value bindMemoryWindow(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const auto window = readHandleAs<MemoryWindow>(info[0], "memoryWindow", Kind::MemoryWindow);
  const Napi::Object object = readObject(info[1], "binding");
  refuseUnknownMembers(object, "binding", {"region", "address", "length", "access", "wrId", "sendFlags"});
  const MwBind bind = readBinding(object);
  const uint64_t wrId = readIntegerMember(object, "wrId", 0, kMaxSafeInteger, 0);
  const uint32_t flags = readSendFlags(object, kSendFlagsMax);
  uint32_t rkey = window->rkey();  // stays so if the binding is refused
  const int errnum = as<QueuePair>(self)->bindMemoryWindow(*window, bind, wrId, flags, &rkey);
  Napi::Object result = postResult(environment, errnum == 0 ? 1 : 0, 1, errnum);
  result.Set("rkey", number(environment.env(), rkey));
  return result;
}

Napi::Value postSend(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const Napi::Array array = readRequests(info[0]);
  std::vector<SendWorkRequest> requests(array.Length());
  std::vector<std::shared_ptr<VerbsObject>> referred;  // stay alive until the provider has looked at them
  std::vector<std::shared_ptr<Memory>> inlineSources;  // stay mapped until the provider has copied from them
  std::vector<std::vector<Sge>> elements(requests.size());
  std::vector<std::unique_ptr<MwBind>> bindings;
  for (uint32_t i = 0; i < requests.size(); i++) {
    Napi::HandleScope scope(environment.env());
    const Napi::Object object = readObject(array.Get(i), "requests[" + std::to_string(i) + "]");
    refuseUnknownMembers(
        object, "request",
        {"wrId", "opcode", "sendFlags", "localAddress", "length", "lkey", "remoteAddress", "rkey", "immData",
         "compareAdd", "swap", "addressHandle", "remoteQpNum", "remoteQkey", "sges", "invalidateRkey", "bind",
         "checksumBefore"});
    SendWorkRequest& request = requests[i];
    request.wrId = readIntegerMember(object, "wrId", 0, kMaxSafeInteger, 0);
    request.opcode = static_cast<WrOpcode>(readInteger(object.Get("opcode"), "opcode", 0, 9));
    request.sendFlags = readSendFlags(object, kSendFlagsMax | kSendChecksum | kSendChecksumContinued);
    request.checksumBefore = readIntegerMember(object, "checksumBefore", 0, kMaxSafeInteger, 0);
    const std::string name = "requests[" + std::to_string(i) + "]";
    readBuffers(object, name, &request, &elements[i]);
    request.remoteAddress = readIntegerMember(object, "remoteAddress", 0, kMaxSafeInteger, 0);
    request.rkey = static_cast<uint32_t>(readIntegerMember(object, "rkey", 0, kMaxUint32, 0));
    request.immData = static_cast<uint32_t>(readIntegerMember(object, "immData", 0, kMaxUint32, 0));
    request.invalidateRkey = static_cast<uint32_t>(readIntegerMember(object, "invalidateRkey", 0, kMaxUint32, 0));
    const Napi::Value binding = object.Get("bind");
    if ((request.opcode == WrOpcode::BindMw) != !isAbsent(binding)) {
      throwInvalidArgument(name +
                           (isAbsent(binding) ? " is a BIND_MW and needs `bind`" : " has `bind` but is no BIND_MW"));
    }
    if (!isAbsent(binding)) {
      const Napi::Object bind = readObject(binding, "bind");
      refuseUnknownMembers(bind, "bind", {"memoryWindow", "rkey", "region", "address", "length", "access"});
      auto window = readHandleAs<MemoryWindow>(bind.Get("memoryWindow"), "memoryWindow", Kind::MemoryWindow);
      request.memoryWindow = window.get();
      referred.push_back(std::move(window));
      request.bindRkey = static_cast<uint32_t>(readInteger(bind.Get("rkey"), "rkey", 0, kMaxUint32));
      bindings.push_back(std::make_unique<MwBind>(readBinding(bind)));
      request.bind = bindings.back().get();
    }
    const Napi::Value compareAdd = object.Get("compareAdd");
    if (!isAbsent(compareAdd)) request.compareAdd = readUint64(compareAdd, "compareAdd");
    const Napi::Value swap = object.Get("swap");
    if (!isAbsent(swap)) request.swap = readUint64(swap, "swap");
    const Napi::Value addressHandle = object.Get("addressHandle");
    if (!isAbsent(addressHandle)) {
      auto handle = readHandleAs<AddressHandle>(addressHandle, "addressHandle", Kind::AddressHandle);
      request.addressHandle = handle.get();
      referred.push_back(std::move(handle));
      request.remoteQpNum = static_cast<uint32_t>(readIntegerMember(object, "remoteQpNum", 0, kMaxQpNum, 0));
      request.remoteQkey = static_cast<uint32_t>(readIntegerMember(object, "remoteQkey", 0, kMaxUint32, 0));
    }
    if ((request.sendFlags & kSendInline) != 0 && request.length > 0) {
      const Sge single{request.localAddress, request.length, 0};
      const Sge* sources = request.sgeCount == 0 ? &single : request.sges;
      for (uint32_t k = 0; k < std::max(request.sgeCount, 1u); k++) {
        if (sources[k].length == 0) continue;
        inlineSources.push_back(memoryHolding(sources[k].address, sources[k].length));
        if (inlineSources.back() == nullptr) {
          throwInvalidArgument(name +
                               " is inline, but [address, address + length) of its data is not inside a Memory " +
                               "of this process");
        }
      }
    }
  }
  int errnum = 0;
  const size_t accepted = as<QueuePair>(self)->postSend(requests.data(), requests.size(), &errnum);
  return postResult(environment, accepted, requests.size(), errnum);
}

// For queue pairs and shared receive queues.
template <typename Queue>
Napi::Value postReceive(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const Napi::Array array = readRequests(info[0]);
  std::vector<ReceiveWorkRequest> requests(array.Length());
  std::vector<std::vector<Sge>> elements(requests.size());
  for (uint32_t i = 0; i < requests.size(); i++) {
    Napi::HandleScope scope(environment.env());
    const std::string name = "requests[" + std::to_string(i) + "]";
    const Napi::Object object = readObject(array.Get(i), name);
    refuseUnknownMembers(object, "request", {"wrId", "localAddress", "length", "lkey", "sges"});
    ReceiveWorkRequest& request = requests[i];
    request.wrId = readIntegerMember(object, "wrId", 0, kMaxSafeInteger, 0);
    readBuffers(object, name, &request, &elements[i]);
  }
  int errnum = 0;
  const size_t accepted = as<Queue>(self)->postReceive(requests.data(), requests.size(), &errnum);
  return postResult(environment, accepted, requests.size(), errnum);
}

template <void (QueuePair::*change)(const Gid&, uint16_t)>
Napi::Value multicast(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  const Gid group = parseGid(readString(info[0], "group"), "group");
  ((*as<QueuePair>(self)).*change)(group, static_cast<uint16_t>(readInteger(info[1], "lid", 0, 0xffff)));
  return environment.env().Undefined();
}

Napi::Value getMaxWr(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  return number(environment.env(), as<SharedReceiveQueue>(self)->maxWr());
}

Napi::Value setLimit(Environment& environment, const Napi::CallbackInfo& info, Wrapper& self) {
  as<SharedReceiveQueue>(self)->setLimit(static_cast<uint32_t>(readInteger(info[0], "limit", 0, kMaxUint32)));
  return environment.env().Undefined();
}

Napi::Value querySharedReceiveQueue(Environment& environment, const Napi::CallbackInfo&, Wrapper& self) {
  const SrqAttributes attributes = as<SharedReceiveQueue>(self)->query();
  Napi::Object object = Napi::Object::New(environment.env());
  object.Set("maxWr", number(environment.env(), attributes.maxWr));
  object.Set("limit", number(environment.env(), attributes.limit));
  return object;
}

}  // namespace

std::vector<napi_property_descriptor> sharedReceiveQueueMembers(Environment* environment) {
  constexpr Kind k = Kind::SharedReceiveQueue;
  return {
      getter<k, getMaxWr>(environment, "maxWr"),
      method<k, setLimit>(environment, "setLimit"),
      method<k, querySharedReceiveQueue>(environment, "query"),
      method<k, postReceive<SharedReceiveQueue>>(environment, "postReceive"),
  };
}

Napi::Object queuePairAttributesObject(Napi::Env env, const QpAttributes& attributes) {
  Napi::Object object = Napi::Object::New(env);
  for (const AttributeField& entry : kFields) {
    if ((attributes.mask & entry.maskBit) != 0 || entry.maskBit == kQpState) {
      object.Set(entry.name, number(env, entry.load(attributes)));
    }
  }
  if ((attributes.mask & kQpAv) != 0) object.Set("av", addressVectorObject(env, attributes.av));
  return object;
}

std::vector<napi_property_descriptor> queuePairMembers(Environment* environment) {
  constexpr Kind k = Kind::QueuePair;
  return {
      getter<k, getNumber>(environment, "number"),
      getter<k, getType>(environment, "type"),
      getter<k, getCapabilities>(environment, "capabilities"),
      method<k, modify>(environment, "modify"),
      method<k, modifyAsync>(environment, "modifyAsync"),
      method<k, setAccessFlags>(environment, "setAccessFlags"),
      method<k, query>(environment, "query"),
      method<k, postSend>(environment, "postSend"),
      method<k, postReceive<QueuePair>>(environment, "postReceive"),
      method<k, bindMemoryWindow>(environment, "bindMemoryWindow"),
      method<k, multicast<&QueuePair::attachMulticast>>(environment, "attachMulticast"),
      method<k, multicast<&QueuePair::detachMulticast>>(environment, "detachMulticast"),
  };
}

}  // namespace quorate::addon

//go:build linux && (amd64 || arm64) && !nocuda && !gorgonia

package driver

// symbol is an entry point of the driver library.
type symbol int

const (
	cuInit symbol = iota
	cuDriverGetVersion
	cuGetErrorName
	cuGetErrorString
	cuDeviceGetCount
	cuDeviceGet
	cuDeviceGetName
	cuDeviceGetUUID
	cuDeviceGetAttribute
	cuDeviceTotalMem
	cuDeviceGetPCIBusID
	cuDevicePrimaryCtxRetain
	cuDevicePrimaryCtxRelease
	cuCtxSetCurrent
	cuCtxSynchronize
	cuMemGetInfo
	cuMemAlloc
	cuMemFree
	cuMemHostAlloc
	cuMemFreeHost
	cuMemcpyHtoDAsync
	cuMemcpyDtoHAsync
	cuMemcpyDtoDAsync
	cuMemsetD8Async
	cuStreamCreate
	cuStreamSynchronize
	cuStreamWaitEvent
	cuStreamDestroy
	cuEventCreate
	cuEventRecord
	cuEventQuery
	cuEventSynchronize
	cuEventElapsedTime
	cuEventDestroy
	cuModuleLoadData
	cuModuleUnload
	cuModuleGetFunction
	cuFuncGetAttribute
	cuFuncSetAttribute
	cuLaunchKernel
	// From here on a driver may lack them.
	cuFuncGetParamInfo
	cuTensorMapEncodeTiled
	cuDevicePrimaryCtxSetFlags
	symbols

	firstOptional = cuFuncGetParamInfo
)

// names are the exported names: where cuda.h maps a name to a versioned one, that.
var names = [symbols]string{
	cuInit:                    "cuInit",
	cuDriverGetVersion:        "cuDriverGetVersion",
	cuGetErrorName:            "cuGetErrorName",
	cuGetErrorString:          "cuGetErrorString",
	cuDeviceGetCount:          "cuDeviceGetCount",
	cuDeviceGet:               "cuDeviceGet",
	cuDeviceGetName:           "cuDeviceGetName",
	cuDeviceGetUUID:           "cuDeviceGetUuid_v2", // that of the MIG instance, where there is one
	cuDeviceGetAttribute:      "cuDeviceGetAttribute",
	cuDeviceTotalMem:          "cuDeviceTotalMem_v2",
	cuDeviceGetPCIBusID:       "cuDeviceGetPCIBusId",
	cuDevicePrimaryCtxRetain:  "cuDevicePrimaryCtxRetain",
	cuDevicePrimaryCtxRelease: "cuDevicePrimaryCtxRelease_v2",
	cuCtxSetCurrent:           "cuCtxSetCurrent",
	cuCtxSynchronize:          "cuCtxSynchronize",
	cuMemGetInfo:              "cuMemGetInfo_v2",
	cuMemAlloc:                "cuMemAlloc_v2",
	cuMemFree:                 "cuMemFree_v2",
	cuMemHostAlloc:            "cuMemHostAlloc",
	cuMemFreeHost:             "cuMemFreeHost",
	cuMemcpyHtoDAsync:         "cuMemcpyHtoDAsync_v2",
	cuMemcpyDtoHAsync:         "cuMemcpyDtoHAsync_v2",
	cuMemcpyDtoDAsync:         "cuMemcpyDtoDAsync_v2",
	cuMemsetD8Async:           "cuMemsetD8Async",
	cuStreamCreate:            "cuStreamCreate",
	cuStreamSynchronize:       "cuStreamSynchronize",
	cuStreamWaitEvent:         "cuStreamWaitEvent",
	cuStreamDestroy:           "cuStreamDestroy_v2",
	cuEventCreate:             "cuEventCreate",
	cuEventRecord:             "cuEventRecord",
	cuEventQuery:              "cuEventQuery",
	cuEventSynchronize:        "cuEventSynchronize",
	cuEventElapsedTime:        "cuEventElapsedTime",
	cuEventDestroy:            "cuEventDestroy_v2",
	cuModuleLoadData:          "cuModuleLoadData",
	cuModuleUnload:            "cuModuleUnload",
	cuModuleGetFunction:       "cuModuleGetFunction",
	cuFuncGetAttribute:        "cuFuncGetAttribute",
	cuFuncSetAttribute:        "cuFuncSetAttribute",
	cuLaunchKernel:            "cuLaunchKernel",
	cuFuncGetParamInfo:        "cuFuncGetParamInfo",
	cuTensorMapEncodeTiled:    "cuTensorMapEncodeTiled",

	cuDevicePrimaryCtxSetFlags: "cuDevicePrimaryCtxSetFlags_v2",
}

// Values of cuda.h.
const (
	streamNonBlocking = 1
	hostAllocPortable = 1

	attrClock       = 13
	attrSMs         = 16
	attrMemoryClock = 36
	attrMemoryBits  = 37
	attrL2          = 38
	attrMajor       = 75
	attrMinor       = 76
	attrSharedOptIn = 97
)

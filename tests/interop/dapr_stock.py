"""A stand-in for a daprd that has no streaming bindings. Prints its port, and ends with its standard input."""

import concurrent.futures
import sys

import grpc

from dapr_messages import RUNTIME, runtime


def invoke(request, context):
    if request.name != "daprd":
        context.abort(grpc.StatusCode.INTERNAL, f"error invoking output binding {request.name}: couldn't find it")
    return runtime.InvokeBindingResponse(data=request.data, metadata=request.metadata)


class EverythingElse(grpc.GenericRpcHandler):
    """Methods that daprd does not know it takes for those of apps."""

    def service(self, call):
        def refuse(requests, context):
            message = "failed to proxy request: required metadata dapr-callee-app-id or dapr-app-id not found"
            context.abort(grpc.StatusCode.UNKNOWN, message)

        return grpc.stream_stream_rpc_method_handler(refuse)


def main():
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
    unary = grpc.unary_unary_rpc_method_handler(
        invoke,
        request_deserializer=runtime.InvokeBindingRequest.FromString,
        response_serializer=runtime.InvokeBindingResponse.SerializeToString,
    )
    known = grpc.method_handlers_generic_handler(f"{RUNTIME}.Dapr", {"InvokeBinding": unary})
    server.add_generic_rpc_handlers((known, EverythingElse()))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(None)


main()

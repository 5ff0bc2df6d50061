"""What grpcio's own health client hears of the proxy. Takes its address; prints a line for each check, and ends at the first failure."""

import json
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

PATIENCE = 60
SERVING = health_pb2.HealthCheckResponse.SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
# A balancer that takes a connection only once Watch has called it healthy.
WATCHED = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}


def asked(service=""):
    return health_pb2.HealthCheckRequest(service=service)


def expect(what, wanted):
    if what != wanted:
        raise AssertionError(f"expected {wanted!r}, got {what!r}")


def check(health):
    expect(health.Check(asked(), timeout=PATIENCE).status, SERVING)


def check_of_an_unknown_service(health):
    try:
        health.Check(asked("no.such.Service"), timeout=PATIENCE)
    except grpc.RpcError as error:
        expect(error.code(), grpc.StatusCode.NOT_FOUND)
        return
    raise AssertionError("the call did not fail")


def watch(health):
    for service, status in [("", SERVING), ("no.such.Service", SERVICE_UNKNOWN)]:
        news = health.Watch(asked(service), timeout=PATIENCE)
        expect(next(news).status, status)
        news.cancel()


def connection_that_is_used_only_while_it_is_healthy(address):
    options = [("grpc.service_config", json.dumps(WATCHED)), ("grpc.enable_health_checking", 1)]
    with grpc.insecure_channel(address, options) as channel:
        grpc.channel_ready_future(channel).result(PATIENCE)


def main(address):
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for test in [check, check_of_an_unknown_service, watch]:
            test(health)
            print(test.__name__.replace("_", " "), flush=True)
    connection_that_is_used_only_while_it_is_healthy(address)
    print("connection that is used only while it is healthy", flush=True)


main(*sys.argv[1:])

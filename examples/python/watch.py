"""Prints the services and pipelines that the router sees, now and after each change.

usage: watch.py [--router ADDRESS] [--changes N]
"""

import argparse

import grpc
from lamina.router.v1 import router_pb2, router_pb2_grpc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--router", default="127.0.0.1:7070", help="address of the router")
    parser.add_argument("--changes", type=int, default=0, help="stop after this many topologies; 0 means never")
    args = parser.parse_args()

    with grpc.insecure_channel(args.router) as channel:
        router = router_pb2_grpc.RouterServiceStub(channel)
        stream = router.WatchTopology(router_pb2.WatchTopologyRequest())
        for n, response in enumerate(stream, start=1):
            mesh = response.mesh
            print(f"{len(mesh.members)} services, {len(mesh.pipelines)} pipelines")
            for member in mesh.members:
                held = "  ".join(f"{h.model} layers {h.lo}-{h.hi} of {h.layers}" for h in member.held)
                print(f"  {member.service:10} {member.address}  {held}")
            for p in mesh.pipelines:
                print(f"  pipeline {p.id[:8]}  {p.model} over {len(p.stages)} stages, {p.running} running, {p.waiting} waiting")
            if n == args.changes:
                stream.cancel()
                return


if __name__ == "__main__":
    main()

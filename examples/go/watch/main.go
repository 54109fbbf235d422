// Command watch prints the services and pipelines that the router sees, now and after
// each change.
//
//	go run ./examples/go/watch
//	go run ./examples/go/watch -changes 1    # print the topology once
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

func main() {
	address := flag.String("router", "127.0.0.1:7070", "address of the router")
	changes := flag.Int("changes", 0, "stop after this many topologies; 0 means never")
	flag.Parse()

	conn, err := grpc.NewClient(*address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	stream, err := routerv1.NewRouterServiceClient(conn).WatchTopology(ctx, &routerv1.WatchTopologyRequest{})
	if err != nil {
		log.Fatal(err)
	}
	for n := 0; *changes == 0 || n < *changes; n++ {
		response, err := stream.Recv()
		if ctx.Err() != nil {
			return // interrupted by the user
		}
		if err != nil {
			log.Fatal(err)
		}
		print(response.GetMesh())
	}
}

// print writes one topology.
func print(mesh *routerv1.Mesh) {
	fmt.Printf("%s  %d services, %d pipelines\n", time.Now().Format(time.TimeOnly), len(mesh.GetMembers()),
		len(mesh.GetPipelines()))
	for _, member := range mesh.GetMembers() {
		fmt.Printf("  %-10s %s", member.GetService(), member.GetAddress())
		for _, held := range member.GetHeld() {
			fmt.Printf("  %s layers %d-%d of %d", held.GetModel(), held.GetLo(), held.GetHi(), held.GetLayers())
		}
		fmt.Println()
	}
	for _, pipeline := range mesh.GetPipelines() {
		fmt.Printf("  pipeline %.8s  %s over %d stages, %d running, %d waiting\n", pipeline.GetId(),
			pipeline.GetModel(),
			len(pipeline.GetStages()), pipeline.GetRunning(), pipeline.GetWaiting())
	}
}

// Command generate continues a prompt and prints the text while it is generated.
//
//	go run ./examples/go/generate -prompt "The prince looked at her and"
//
// It uses the gRPC API. The same seed gives the same text every time, whatever else
// the router is serving.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

func main() {
	address := flag.String("router", "127.0.0.1:7070", "address of the router")
	prompt := flag.String("prompt", "The prince looked at her and", "text to continue")
	tokens := flag.Uint("tokens", 48, "maximum number of tokens")
	temperature := flag.Float64("temperature", 0.8, "sampling temperature; 0 is greedy")
	seed := flag.Uint64("seed", 1, "seed of the sampler")
	flag.Parse()

	conn, err := grpc.NewClient(*address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	// Every call has a deadline. Cancelling it frees the request on all services.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	t := float32(*temperature)
	stream, err := routerv1.NewRouterServiceClient(conn).Generate(ctx, &routerv1.GenerateRequest{
		Prompt:    &routerv1.GenerateRequest_Text{Text: *prompt},
		MaxTokens: uint32(*tokens),
		Sampling:  &routerv1.Sampling{Temperature: &t, Seed: seed},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(*prompt)
	finished := false
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			log.Fatal(err) // an incomplete answer always ends with an error
		}
		switch event := response.GetEvent().(type) {
		case *routerv1.GenerateResponse_Token:
			fmt.Print(event.Token.GetText())
		case *routerv1.GenerateResponse_Finished:
			finished = true
			usage := event.Finished.GetUsage()
			fmt.Printf("%s\n\n%d prompt tokens, %d completion tokens, %v\n", event.Finished.GetText(),
				usage.GetPromptTokens(), usage.GetCompletionTokens(), event.Finished.GetFinishReason())
		}
	}
	if !finished {
		log.Fatal("the stream ended without a finish reason")
	}
}

// Command logprobs prints each generated token with its log-probability and the most
// likely alternatives.
//
//	go run ./examples/go/logprobs -prompt "It was impossible to" -top 3
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

func main() {
	address := flag.String("router", "127.0.0.1:7070", "address of the router")
	prompt := flag.String("prompt", "It was impossible to", "text to continue")
	tokens := flag.Uint("tokens", 8, "maximum number of tokens")
	top := flag.Uint("top", 3, "number of candidates to print for each token, at most 20")
	flag.Parse()

	conn, err := grpc.NewClient(*address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	greedy := float32(0)
	stream, err := routerv1.NewRouterServiceClient(conn).Generate(ctx, &routerv1.GenerateRequest{
		Prompt:      &routerv1.GenerateRequest_Text{Text: *prompt},
		MaxTokens:   uint32(*tokens),
		TopLogprobs: uint32(*top),
		Sampling:    &routerv1.Sampling{Temperature: &greedy},
	})
	if err != nil {
		log.Fatal(err)
	}
	sum, count := 0.0, 0
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			log.Fatal(err)
		}
		token := response.GetToken()
		if token == nil {
			continue
		}
		sum, count = sum+float64(token.GetLogprob()), count+1
		fmt.Printf("%-12q %8.4f  ", token.GetText(), token.GetLogprob())
		for _, candidate := range token.GetTop() {
			// Log-probabilities are natural logarithms, so exp gives the probability.
			fmt.Printf("  %q %.1f %%", candidate.GetText(), 100*math.Exp(float64(candidate.GetLogprob())))
		}
		fmt.Println()
	}
	if count == 0 {
		log.Fatal("the model generated no tokens")
	}
	fmt.Printf("perplexity of the answer: %.2f\n", math.Exp(-sum/float64(count)))
}

// Command train trains a small character model on a text file and prints the loss.
//
//	go run ./examples/go/train -text /path/to/text.txt
//
// The trainer reads the text and writes the model on its own machine. The result is a
// Hugging Face folder, which `lamina up --model DIR` serves. Its bytes do not depend on
// the number of stages and replicas.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
)

func main() {
	address := flag.String("trainer", "127.0.0.1:7070", "address of the trainer; with lamina up the router's address")
	text := flag.String("text", "", "text file in the trainer's data folder (lamina up --data DIR; or --allow-path DIR)")
	name := flag.String("name", "example", "name of the run")
	steps := flag.Int("steps", 40, "number of optimizer steps")
	stages := flag.Uint("stages", 1, "stages of each chain")
	replicas := flag.Uint("replicas", 1, "number of chains")
	flag.Parse()
	if *text == "" {
		log.Fatal("give a text file with -text")
	}

	conn, err := grpc.NewClient(*address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()

	manifest, err := json.Marshal(map[string]any{
		"name":       *name,
		"data":       map[string]any{"text": *text, "validation_fraction": 0.1},
		"vocabulary": map[string]any{"type": "char"},
		"model": map[string]any{
			"architecture": "llama", "layers": 4, "width": 32, "heads": 4, "kv_heads": 2, "ff": 64, "context": 32,
			"tied": true,
		},
		"slots": 4, "slot_sequences": 2, "sequence_len": 32, // a global batch of 4 x 2 sequences
		"steps":         *steps,
		"learning_rate": map[string]any{"max": 0.01, "min": 0.001, "warmup": 4},
		"betas":         []float64{0.9, 0.99}, "decay": 0.1, "clip": 1, "seed": 7,
	})
	if err != nil {
		log.Fatal(err)
	}
	trainer := trainerv1.NewTrainerServiceClient(conn)
	_, err = trainer.StartRun(ctx,
		&trainerv1.StartRunRequest{ManifestJson: manifest, Stages: uint32(*stages), Replicas: uint32(*replicas)})
	if err != nil {
		log.Fatal(err)
	}
	// The run continues when this program ends; the stream only watches it.
	watch, err := trainer.WatchRun(ctx, &trainerv1.WatchRunRequest{Run: *name})
	if err != nil {
		log.Fatal(err)
	}
	for {
		response, err := watch.Recv()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			log.Fatal(err)
		}
		run := response.GetRun()
		switch run.GetState() {
		case trainerv1.RunState_RUN_STATE_RUNNING:
			fmt.Printf("step %3d of %d  loss %.4f  %.0f tokens/s\n", run.GetStep(), run.GetSteps(), run.GetLoss(),
				run.GetTokensPerSecond())
		case trainerv1.RunState_RUN_STATE_DONE:
			fmt.Printf("done: loss %.4f, model in %s, SHA-256 of the weights %s\n", run.GetLoss(), run.GetModelPath(),
				run.GetWeightsDigest())
		case trainerv1.RunState_RUN_STATE_FAILED:
			log.Fatalf("the run failed: %s", run.GetError())
		}
	}
}

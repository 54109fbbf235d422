package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/checkpoint"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// inspectedCheckpoint is a checkpoint of a run as --format json prints it.
type inspectedCheckpoint struct {
	Step       uint64   `json:"step"`
	Whole      bool     `json:"whole"`    // as far as it was read
	Verified   bool     `json:"verified"` // all of it was read
	Loss       float64  `json:"loss"`
	Validation *float64 `json:"validation_loss,omitempty"`
	Stages     int      `json:"stages"`
	Replicas   int      `json:"replicas"`
	Files      int      `json:"files"`
	Bytes      int64    `json:"bytes"`
	Weights    string   `json:"weights_sha256"`
	Damage     []string `json:"damage,omitempty"` // file, tensor and offset of each fault
}

// checkpoints prints the checkpoints of a run. With --verify it reads all of their bytes, and fails if one of
// them is damaged.
func (c *inspectCmd) checkpoints(e *verb.Env) error {
	store := checkpoint.New(checkpoint.Dir(c.File), checkpoint.Name)
	steps, err := store.Steps()
	if err != nil {
		return err
	}
	all, damaged := []inspectedCheckpoint{}, 0
	for _, step := range steps {
		one, err := inspectCheckpoint(store, step, c.Verify)
		if err != nil {
			return err
		}
		if !one.Whole {
			damaged++
		}
		all = append(all, one)
	}
	if c.Format == "json" {
		err = verb.PrintJSON(e, all)
	} else {
		err = printCheckpoints(e.Stdout, all)
	}
	if err == nil && c.Verify && damaged > 0 {
		err = fault.New(fault.DataLoss, "verify %s: %d of %d checkpoints are damaged", c.File, damaged, len(all))
	}
	return err
}

func inspectCheckpoint(store *checkpoint.Store, step uint64, verify bool) (inspectedCheckpoint, error) {
	out := inspectedCheckpoint{Step: step}
	c, err := store.Open(step)
	if c != nil {
		out.Loss, out.Validation, out.Stages, out.Replicas = c.Loss, c.Validation, c.Stages, c.Replicas
		out.Files, out.Bytes, out.Weights = len(c.Files), c.Bytes(), c.Weights
	}
	switch {
	case err != nil && c == nil:
		out.Damage = append(out.Damage, err.Error())
	case verify:
		found, err := c.Verify() // finds files of a wrong size, too
		if err != nil {
			return out, err
		}
		for _, d := range found {
			out.Damage = append(out.Damage, d.Error())
		}
		out.Verified = true
	case err != nil:
		out.Damage = append(out.Damage, err.Error())
	}
	out.Whole = len(out.Damage) == 0
	return out, nil
}

func printCheckpoints(out io.Writer, all []inspectedCheckpoint) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "STEP\tLOSS\tVALIDATION\tWRITTEN BY\tFILES\tBYTES\tSTATE\n")
	for _, c := range all {
		validation, state := "-", "not verified"
		if c.Validation != nil {
			validation = fmt.Sprintf("%.4f", *c.Validation)
		}
		switch {
		case !c.Whole:
			state = "damaged"
		case c.Verified:
			state = "whole"
		}
		fmt.Fprintf(w, "%d\t%.4f\t%s\t%d x %d\t%d\t%d\t%s\n", c.Step, c.Loss, validation, c.Stages, c.Replicas, c.Files,
			c.Bytes, state)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, c := range all {
		for _, d := range c.Damage {
			if _, err := fmt.Fprintf(out, "step %d: %s\n", c.Step, d); err != nil {
				return err
			}
		}
	}
	return nil
}

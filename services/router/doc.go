// Package router is the service that users talk to. It watches discovery, assembles
// shards into pipelines (inventory.go, pipeline.go), keeps each pipeline's running
// batch (scheduler.go), and runs requests on them (generate.go, chat.go). Its HTTP
// face and console are in the packages below it.
//
// A pipeline is an actor: one goroutine owns its sessions and batches, everything
// else sends it events. A request's own goroutine keeps the token log, so when a
// pipeline dies the request moves to another one and the client sees a pause.
//
// Proposers guess ids ahead of a session (speculate.go): by its own log, or by a draft
// model's pipeline (draft.go). Guesses decide how many steps a text takes, never which
// text it is.
package router

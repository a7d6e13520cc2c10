// Command nf4conv turns safetensors checkpoints into bitsandbytes 4-bit checkpoints.
// main.go starts it, app.go holds what all verbs share, every verb has a file.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run is main without the process: it returns the exit code.
func run(args []string, stdout, stderr *os.File) int {
	ctx, stop := interruptible(stderr)
	defer stop()
	a := &app{stdout: stdout, stderr: stderr, autoBytes: autoDeviceBytes()}
	return a.exitCode(a.main(ctx, args))
}

// interruptible returns a context that the first SIGINT or SIGTERM cancels. A second one
// ends the process at once, as without handler.
func interruptible(stderr *os.File) (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, os.Interrupt, syscall.SIGTERM)
	go func() {
		if _, ok := <-ch; ok {
			signal.Reset()
			fmt.Fprintln(stderr, "nf4conv: interrupted; stopping (a second signal stops at once)")
			cancel()
		}
	}()
	return ctx, func() { signal.Stop(ch); close(ch); cancel() }
}

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/nf4conv/nf4conv/internal/fault"
)

// errorDoc is what --json prints when a run fails.
type errorDoc struct {
	Schema   string   `json:"schema"`
	Class    string   `json:"class"`
	ExitCode int      `json:"exit_code"`
	Message  string   `json:"message"`
	Hints    []string `json:"hints"`
}

var classNames = map[fault.Class]string{
	fault.Internal: "internal", fault.Usage: "usage", fault.Gate: "gate", fault.Input: "input", fault.IO: "io", fault.Interrupted: "interrupted",
}

// exitCode prints an error and turns its class into the exit code: the only place that
// does either.
func (a *app) exitCode(err error) int {
	if err == nil {
		return 0
	}
	class := fault.ClassOf(err)
	if errors.Is(err, context.Canceled) {
		class = fault.Interrupted
	}
	hints := fault.Hints(err)
	message := oneLine(err)
	if class == fault.Interrupted {
		message = "interrupted"
		hints = nil
		if a.writes {
			hints = []string{"what is done is kept; the same command continues"}
		}
	}
	var gate *gateError
	if a.json && !errors.As(err, &gate) {
		doc := errorDoc{Schema: "nf4conv.error/1", Class: classNames[class], ExitCode: class.ExitCode(), Message: message, Hints: append([]string{}, hints...)}
		if printJSON(a.stdout, doc) != nil {
			return fault.IO.ExitCode()
		}
	}
	a.tell("error: " + message)
	for _, h := range hints {
		a.tell("hint: " + h)
	}
	return class.ExitCode()
}

// oneLine joins the lines of joined errors.
func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' }), "; ")
}

// lineHandler prints log records as plain lines.
type lineHandler struct {
	w     *os.File
	level slog.Level
}

func (h *lineHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

func (h *lineHandler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString("nf4conv: " + visible(r.Message))
	r.Attrs(func(at slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%s", at.Key, visible(at.Value.String()))
		return true
	})
	_, err := fmt.Fprintln(h.w, b.String())
	return err
}

func (h *lineHandler) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h *lineHandler) WithGroup(string) slog.Handler      { return h }

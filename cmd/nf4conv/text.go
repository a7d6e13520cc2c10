package main

import (
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/term"
)

// helpWidth is how wide help is where its reader's terminal is unknown.
const helpWidth = 80

// textDoc is what a verb prints with --json whose result is a text: help and completion.
type textDoc struct {
	Schema string `json:"schema"`
	Text   string `json:"text"`
}

// text prints a result that is a text.
func (a *app) text(s string) error {
	if a.json {
		return a.result(&textDoc{"nf4conv.text/1", s})
	}
	return a.print(s)
}

// print puts a finished text on stdout.
func (a *app) print(s string) error {
	if _, err := io.WriteString(a.stdout, s); err != nil {
		return fault.IOf("writing the result: %w", err)
	}
	return nil
}

// say prints a line for people.
func (a *app) say(format string, args ...any) {
	if !a.quiet {
		a.tell(fmt.Sprintf(format, args...))
	}
}

// tell prints a message on stderr, wrapped on a terminal.
func (a *app) tell(message string) {
	fmt.Fprint(a.stderr, wrap("nf4conv: ", visible(message), 2, term.Width(a.stderr)))
}

// visible writes the characters that steer a terminal, or that cannot be seen, as Go
// escapes. Names of tensors and files come from others and may hold any.
func visible(s string) string {
	if strings.IndexFunc(s, hidden) < 0 && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch _, n := utf8.DecodeRuneInString(s[i:]); {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case hidden(r):
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func hidden(r rune) bool { return !unicode.IsPrint(r) }

// unitNames do not stand apart from their numbers.
var unitNames = regexp.MustCompile(`^([kMGTP]i?B?|KiB|B|ms|s|%)\b`)

// unbroken splits text at blanks, but for those between a number and its unit.
func unbroken(text string) []string {
	var out []string
	for _, word := range strings.Split(text, " ") {
		if n := len(out); n > 0 && unitNames.MatchString(word) && strings.ContainsAny(out[n-1][max(0, len(out[n-1])-1):], "0123456789") {
			out[n-1] += " " + word
			continue
		}
		out = append(out, word)
	}
	return out
}

// wrap breaks text that begins after a label at blanks, so that no line is longer than
// width where words allow it; later lines are indented. Width 0 breaks nothing. The
// result ends in a newline.
func wrap(label, text string, indent, width int) string {
	if width <= 0 || utf8.RuneCountInString(label)+utf8.RuneCountInString(text) <= width {
		return label + text + "\n"
	}
	if indent > width/2 {
		indent = 4
	}
	var b strings.Builder
	b.WriteString(label)
	at, fresh := utf8.RuneCountInString(label), true
	for _, word := range unbroken(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case !fresh && at+1+n > width, fresh && at > indent && at+n > width:
			b.WriteString("\n" + strings.Repeat(" ", indent))
			at = indent
		case !fresh:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at, fresh = at+n, false
	}
	// A label of blanks alone would leave them at the end of a line.
	var out []string
	for _, line := range strings.Split(b.String(), "\n") {
		out = append(out, strings.TrimRight(line, " "))
	}
	return strings.Join(out, "\n") + "\n"
}

package main

import (
	"os"

	"github.com/urfave/cli/v2"

	"github.com/nf4conv/nf4conv/formats/hf"
	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/verify"
)

// textFlags say what the models are run on, besides --ids.
func textFlags() []cli.Flag {
	return []cli.Flag{
		stringFlag("text", "", "UTF-8 text `FILE` (.zst and .gz too, - is stdin) to run the models on (default: one that is built in)"),
		&cli.IntFlag{Name: "context", Usage: "cut the text into sequences of `N` tokens (default: 512, or the model's limit)", EnvVars: env("context")},
		&cli.IntFlag{Name: "tokens", Usage: "use `N` tokens of the text at most (default: all)", EnvVars: env("tokens")},
	}
}

// readText reads what the models are run on.
func (f *verifyFlags) readText(c *cli.Context) error {
	f.text, f.cut = c.String("text"), verify.TextOptions{Context: c.Int("context"), Tokens: c.Int("tokens")}
	for _, name := range []string{"context", "tokens"} {
		n := c.Int(name)
		switch {
		case n < 0 || c.IsSet(name) && n < 2:
			return fault.Usagef("--%s %d: expected 2 or more", name, n)
		case n > 0 && f.ids != "":
			return fault.Usagef("--%s has no effect on --ids, which has its own sequences", name)
		}
	}
	if f.text != "" && f.ids != "" {
		return fault.Usagef("--text and --ids contradict each other")
	}
	if f.limit > 0 && f.ids == "" {
		return fault.Usagef("--sequences has an effect only with --ids; --tokens limits a text")
	}
	return nil
}

// verifyText makes the token ids, and the attention mask for them, where a stage needs them.
func (a *app) verifyText(f *verifyFlags, base, candidate *hf.Checkpoint, o *verify.Options) (err error) {
	if f.ids != "" {
		o.Text, err = verify.ReadIDs(f.ids, f.limit)
	} else if verify.NeedsText(f.stages) {
		var warning string
		if o.Text, warning, err = f.tokenize(base, candidate); warning != "" {
			a.say("warning: %s", warning)
		}
	}
	if err != nil || f.sparse == nil || o.Text == nil {
		return err
	}
	o.Attention = f.sparse.Name
	o.Mask, err = f.sparse.Mask(o.Text)
	return err
}

func (f *verifyFlags) tokenize(base, candidate *hf.Checkpoint) (*verify.IDs, string, error) {
	var text string
	var err error
	name := f.text
	switch f.text {
	case "":
		name = verify.SampleName
		text, err = verify.SampleText()
	case "-":
		name = "standard input"
		text, err = verify.ReadTextFrom(os.Stdin, name)
	default:
		text, err = verify.ReadText(f.text)
	}
	if err != nil {
		return nil, "", err
	}
	return verify.Tokenize(base, candidate, text, name, f.cut)
}

//go:build nocuda

package cuda

func readImage(string) ([]byte, error) { return nil, ErrNotBuilt }

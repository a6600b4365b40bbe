"""What is computed after training, from stored logits: pure functions in float64 on the host, by
numpy and scipy. Imports no jax.

    _logits.py      what logits, labels and class counts may be; probabilities
    metrics.py      logits, labels -> a number: accuracy, likelihood, calibration, selective
                    prediction, rare classes, wrong labels, out-of-distribution images
    transforms.py   logits -> logits: temperature, logit adjustment

A metric is `(logits float[N, K], labels int[N], *, ...) -> float`, a transform `(logits float[N,
K], *, ...) -> float64[N, K]`. The keywords are hyperparameters, and what a part asks for by
parameter name:

    validation_logits   float[V, K], of the validation split
    validation_labels   int[V]
    class_counts        int[K], training images of each class
    train_losses        float[n], the loss of each training image
    wrong_labels        bool[n], whether the label of that image is wrong
    ood_logits          float[M, K], of images of none of the classes (out-of-distribution)

The metrics of a network that diverged are NaN: one logit that is NaN suffices, or one row of logits
that has no softmax, as its largest is infinite. A logit of -inf is that of a class that cannot be.
"""

"""Serve a reduced model from several processes: each loads it once, runs on one thread, and classifies what it is sent.

    python examples/08_process_pool.py                                # ten of the bundled images
    python examples/08_process_pool.py photo.jpg other.png --workers 4

The process that hands out the images imports no torch, so it starts at once and stays small.
"""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor


def load(ratio):
    """Make the model of a worker, and run it once so that the first request does not wait."""
    global answer
    import torch
    from PIL import Image

    import mtrkit
    from mtrkit.data import bundled_images
    from mtrkit.measure import keep_freed_memory, preprocess_for, read_image

    torch.set_num_threads(1)
    keep_freed_memory()
    model = mtrkit.create_model("vim_micro_patch4_stride2_32", "pretrained").eval()  # your model here
    mtrkit.apply_reduction(model, "runs", ratio=ratio)
    preprocess = preprocess_for(model.pretrained_cfg)
    pixels, _, classes = bundled_images()

    @torch.inference_mode()
    def answer(image):
        opened = read_image(image) if isinstance(image, str) else Image.fromarray(pixels[image])
        return classes[int(model(preprocess(opened)[None]).argmax())]

    answer(0)


def classify(image):
    """Name of the class of one image: a file, or the number of a bundled image."""
    return answer(image)


def main():
    """Start the workers, hand out the images, and print the answers in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", help="image files (default: ten of the bundled images)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--ratio", type=float, default=0.3, help="share of the FLOPs to remove (default: 0.3)")
    args = parser.parse_args()
    images = args.images or range(0, 1000, 100)
    spawned = multiprocessing.get_context("spawn")  # the threads of a forked torch may wait for ever
    with ProcessPoolExecutor(args.workers, mp_context=spawned, initializer=load, initargs=(args.ratio,)) as pool:
        for image, name in zip(images, pool.map(classify, images), strict=True):
            print(f"{image}: {name}")


if __name__ == "__main__":
    main()

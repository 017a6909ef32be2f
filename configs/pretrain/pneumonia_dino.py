"""DINO + iBOT on PneumoniaMNIST: 4,682 paediatric radiographs of 28 px, a ViT of width 128 with patches of 4 px, a CPU.

    python -m data_prep.build --reader=medmnist --input=pneumoniamnist_28.npz --output=data/pneumonia
    python -m cxr_jax.train --config=configs/pretrain/pneumonia_dino.py --workdir=runs/pneumonia_dino \\
        --config.data.path=data/pneumonia
    python -m cxr_jax.evaluate --config=configs/eval/knn.py --workdir=runs/pneumonia_knn \\
        --config.init_from=runs/pneumonia_dino --config.data.path=data/pneumonia --config.data.targets="('Pneumonia',)"

Not yet run.
"""

from configs.pretrain import small_cxr


def get_config():
    config = small_cxr.get_config()
    config.batch_size = 64
    config.total_steps = 500
    config.model.update(variant="vit_ti4", width=128, depth=6, num_heads=4, image_size=28)
    config.crops.update(global_size=28, local_size=12, num_local=4)
    config.crops.update(global_scale=(0.32, 1.0), local_scale=(0.05, 0.32))
    config.objective.update(group_size=32, ema=(0.99, 1.0), ibot_weight=1.0, koleo_weight=0.1)
    for head in config.heads.values():
        head.update(hidden=512, bottleneck=128, num_prototypes=128)
    config.optim.update(base_learning_rate=4e-3, weight_decay=(0.04, 0.04), layer_decay=0.9)
    return config
